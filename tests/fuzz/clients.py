"""Many clients at once with different images, a third of whom leave early.

    python -m tests.fuzz.clients
    python -m tests.fuzz.clients --clients 64 --rounds 6 --concurrent 8

Every answer must be that of a single run in this process, token for token; after each round
nobody may be left in the queue or the batch, and the memory of the server must not grow. The exit
code is 1 if anything is otherwise.
"""

import argparse
import http.client
import io
import json
import random
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import jvlm_mlx
from jvlm_mlx.demo.tasks import IMAGE_TASKS, example_at
from tests.fuzz.request_mutations import CHAT, data_uri
from tests.fuzz.requests import Server

MAX_TOKENS = 24
DRAIN_SECONDS = 30
GROWTH_BYTES = 30 * 2**20
SECONDS = 300
"""For one answer, however many wait."""


@dataclass(frozen=True)
class Question:
    """A request, and what a single run answers."""

    body: dict
    expected: str


@dataclass
class Outcome:
    """What became of all rounds."""

    right: int = 0
    left: int = 0
    findings: list = field(default_factory=list)
    memory: list = field(default_factory=list)
    """Resident bytes of the server, and bytes that MLX has in use, after each round."""


def make_questions(count, first=0):
    """Return questions about as many different images; every third one is sampled."""
    model, processor = jvlm_mlx.load("demo")
    questions = []
    for number in range(first, first + count):
        example = example_at(99, number, IMAGE_TASKS, ("en",), held_out=True)
        text = example.turns[number % len(example.turns)].question
        buffer = io.BytesIO()
        example.image.save(buffer, "PNG")
        options = {"max_tokens": MAX_TOKENS}
        if number % 3 == 0:
            options |= {"temperature": 1.0, "seed": number}
        content = [
            {"type": "image_url", "image_url": {"url": data_uri(buffer.getvalue())}},
            {"type": "text", "text": text},
        ]
        expected = jvlm_mlx.generate(model, processor, text, example.image, **options).text
        body = {"messages": [{"role": "user", "content": content}], **options}
        questions.append(Question(body, expected))
    return questions


def ask(port, question, stream):
    """Return an answer, or what came instead."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        response = post(connection, {**question.body, "stream": stream})
        data = response.read()
        if response.status != 200:
            return f"status {response.status}: {data[:200]!r}"
        if not stream:
            return json.loads(data)["choices"][0]["message"]["content"]
        events = [one[6:] for one in data.decode().split("\n\n") if one.startswith("data: {")]
        deltas = [json.loads(event)["choices"][0]["delta"] for event in events]
        return "".join(delta.get("content", "") for delta in deltas)
    finally:
        connection.close()


def ask_and_leave(port, question, chance):
    """Ask, and leave: at once, while the answer waits, or in its middle."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        stream = chance.random() < 0.7
        connection.request("POST", CHAT, json.dumps({**question.body, "stream": stream}), JSON)
        if stream and chance.random() < 0.6:
            connection.getresponse().read(chance.randrange(1, 900))
        else:
            time.sleep(chance.random() * 0.5)
    finally:
        connection.close()


JSON = {"Content-Type": "application/json"}


def post(connection, body):
    connection.request("POST", CHAT, json.dumps(body), JSON)
    return connection.getresponse()


def health(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", "/health")
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def run_round(server, questions, seed, outcome):
    """Let one client for each question ask at the same time; note what was wrong."""
    chance = random.Random(f"clients {seed}")
    leaving = set(chance.sample(range(len(questions)), len(questions) // 3))
    begin = threading.Barrier(len(questions))
    lock = threading.Lock()

    def client(number):
        begin.wait()
        try:
            if number in leaving:
                ask_and_leave(server.port, questions[number], random.Random(f"{seed} {number}"))
                answer = None
            else:
                answer = ask(server.port, questions[number], stream=number % 2 == 0)
        except (OSError, http.client.HTTPException, ValueError) as error:
            answer = f"{type(error).__name__}: {error}"
        with lock:
            expected = questions[number].expected
            if answer is None:
                outcome.left += 1
            elif answer == expected:
                outcome.right += 1
            else:
                outcome.findings.append(f"round {seed}: {answer!r} instead of {expected!r}")

    threads = [threading.Thread(target=client, args=(place,)) for place in range(len(questions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    deadline = time.monotonic() + DRAIN_SECONDS
    while (state := health(server.port))["queued"] or state["active"]:
        if time.monotonic() > deadline:
            outcome.findings.append(f"round {seed}: left behind: {state}")
            break
        time.sleep(0.05)
    outcome.memory.append((server.memory, state["memory_bytes"]))


def check_memory(outcome):
    """Note memory that grew once caches and pools were filled, after a third of the rounds."""
    settled = outcome.memory[len(outcome.memory) // 3 :]
    for name, values in zip(("resident", "MLX"), zip(*settled, strict=True), strict=True):
        if values[-1] - values[0] > GROWTH_BYTES:
            outcome.findings.append(f"{name} memory grew: {[one // 2**20 for one in values]} MB")


def flags(clients, concurrent):
    """Return the flags of a server that refuses none of the clients."""
    return (
        "--max-queue",
        str(clients),
        "--max-concurrent",
        str(concurrent),
        "--cache-size",
        "20MB",
    )


def main():
    """Run, report, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.clients", description=__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=6, help="each with other images")
    parser.add_argument("--concurrent", type=int, default=8, help="answers made together")
    parser.add_argument(
        "--log", type=Path, default=Path("clients-server.log"), help="of the server"
    )
    arguments = parser.parse_args()
    outcome, start = Outcome(), time.monotonic()
    server = Server(arguments.log, "demo", flags(arguments.clients, arguments.concurrent), key=None)
    try:
        for number in range(arguments.rounds):
            questions = make_questions(arguments.clients, number * arguments.clients)
            run_round(server, questions, number, outcome)
            resident, active = outcome.memory[-1]
            print(
                f"round {number}: {outcome.right} right, {outcome.left} left,"
                f" {len(outcome.findings)} findings; {resident >> 20} MB resident,"
                f" {active >> 20} MB of MLX", flush=True,
            )  # fmt: skip
    finally:
        server.close()
    check_memory(outcome)
    for finding in outcome.findings:
        print(finding)
    print(
        f"{arguments.clients} clients, {arguments.rounds} rounds in"
        f" {time.monotonic() - start:.0f} s: {outcome.right} right, {outcome.left} left early,"
        f" {len(outcome.findings)} findings"
    )
    return 1 if outcome.findings else 0


if __name__ == "__main__":
    sys.exit(main())
