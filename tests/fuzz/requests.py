"""Mutated requests to a real server process: bodies, headers, chunks, connections, images.

    python -m tests.fuzz.requests --count 10000
    python -m tests.fuzz.requests --seed 1234 --count 1 --verbose      # one finding again

The server runs on the small golden checkpoint in a process of its own. A finding is: a status of
500 or above, an answer that does not fit its schema, an error that is no error object, an answer
that does not come, a good request that is answered otherwise than before, a server that has
ended, memory or open files that grow. The exit code is 1 if there are any.
"""

import argparse
import http.client
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import jsonschema

from tests.fuzz.request_mutations import (
    CHAT,
    GOLDEN,
    KEY,
    MAX_BODY,
    Mutations,
    Sent,
    data_uri,
    dumped,
    head,
)

ROOT = Path(__file__).parents[2]
SCHEMAS = json.loads((GOLDEN / "openai" / "chat-schemas.json").read_text())
FLAGS = (
    "--max-tokens", "4", "--max-queue", "64", "--max-body", f"{MAX_BODY // 1000}KB",
    "--cache-size", "5MB", "--allow-image-folder", str(GOLDEN / "images"),
)  # fmt: skip
ANSWER_SECONDS = 30
"""An answer that takes longer is a hang."""
GROWTH_BYTES = 60 * 2**20
EVERY = 10
"""Requests between two good ones, whose answer is known."""


def validators():
    """Return what checks each kind of answer."""
    return {
        name: jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{name}", **SCHEMAS})
        for name in (
            "CreateChatCompletionResponse", "CreateChatCompletionStreamResponse",
            "CreateCompletionResponse", "ErrorResponse", "ListModelsResponse", "Model",
        )
    }  # fmt: skip


VALID = validators()


class Finding(Exception):  # noqa: N818 - what the campaign looks for
    """The server did what it must not do."""


def exchange(port, sent):
    """Send a request; return status, headers and body of the first answer, or None without one."""
    with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_SECONDS) as connection:
        try:
            start = 0
            for end in (*sent.split, len(sent.data)):
                connection.sendall(sent.data[start:end])
                start = end
                time.sleep(0.01 if sent.split else 0)
            if sent.half_close:
                connection.shutdown(socket.SHUT_WR)
            if sent.leave is not None:
                return leave(connection, sent.leave)
            if not sent.complete and not sent.half_close:
                return leave(connection, 0)
            return read_answer(connection, sent.data.split(b" ", 1)[0].decode("latin-1"))
        except (ConnectionError, BrokenPipeError):
            # The server may refuse a request before it has read all of it.
            return None


def leave(connection, count):
    """Read some of the answer, then reset the connection."""
    while count > 0:
        data = connection.recv(count)
        if not data:
            break
        count -= len(data)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def read_answer(connection, method):
    """Return the first final answer on a connection."""
    response = http.client.HTTPResponse(connection, method=method)
    try:
        response.begin()
        return response.status, response.headers, response.read()
    except TimeoutError as error:
        raise Finding(f"no answer within {ANSWER_SECONDS} s") from error
    except (http.client.HTTPException, ConnectionError):
        return None
    finally:
        response.close()


def check(sent, answer):
    """Check an answer.

    Raises:
        Finding: it is wrong.
    """
    if answer is None:
        # Who closes one direction counts as gone: that is all that is seen of most who leave.
        sure = sent.complete and sent.leave is None and not sent.half_close
        if sure and len(sent.data) < MAX_BODY:
            raise Finding("no answer to a complete request")
        return "none"
    status, headers, body = answer
    if status >= 500 or status < 200:
        raise Finding(f"status {status}: {body[:300]!r}")
    if status >= 400 and headers.get("Content-Length") != "0" and body:
        content = parsed(body)
        VALID["ErrorResponse"].validate(content)
        message = content["error"]["message"]
        if "\n" in message or not 0 < len(message) < 1000:
            raise Finding(f"message: {message[:300]!r}")
    if status == 200 and sent.path:
        check_content(sent, headers, body)
    return str(status)


def check_content(sent, headers, body):
    """Check what a request was answered with, by the schema of its kind."""
    if not headers.get("Content-Type", "").startswith("text/event-stream"):
        kind = "CreateChatCompletionResponse" if sent.path == CHAT else "CreateCompletionResponse"
        VALID[kind].validate(parsed(body))
        return
    *events, last = [one for one in body.decode().split("\n\n") if one and one[0] != ":"]
    if last != "data: [DONE]":
        raise Finding(f"the stream ends with {last[:300]!r}")
    for event in events:
        VALID["CreateChatCompletionStreamResponse"].validate(parsed(event.removeprefix("data: ")))


def parsed(text):
    try:
        return json.loads(text)
    except ValueError as error:
        raise Finding(f"no JSON: {text[:300]!r}") from error


class Server:
    """A server process.

    Args:
        log: file for what it prints.
        model: folder of a checkpoint, or `demo`.
        flags: more of them.
        key: that it asks for.
    """

    def __init__(self, log, model=GOLDEN / "tiny", flags=(), key=KEY):
        self._log = log.open("wb")
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        if key is not None:
            environment["JVLM_API_KEY"] = key
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jvlm_mlx.serve", "--model", str(model), "--port", "0",
             "--quiet", *flags],
            stdout=self._log, stderr=self._log, cwd=ROOT, env=environment,
        )  # fmt: skip
        self._wait(lambda: "\n" in log.read_text())
        line = log.read_text().splitlines()[0]
        if not line.startswith("listening on "):
            raise RuntimeError(f"the server did not start: {line}")
        self.port = int(line.rpartition(":")[2])
        self._wait(lambda: http_get(self.port, "/health") == 200)

    @staticmethod
    def _wait(condition, seconds=60):
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise RuntimeError(f"the server was not ready after {seconds} s")
            time.sleep(0.05)

    @property
    def memory(self):
        """Resident bytes."""
        status = subprocess.run(
            ["ps", "-o", "rss=", "-p", str(self.process.pid)], capture_output=True, check=True
        )
        return int(status.stdout) * 1024

    @property
    def open_files(self):
        """How many descriptors it holds, where the system shows that."""
        folder = Path(f"/proc/{self.process.pid}/fd")
        return len(list(folder.iterdir())) if folder.exists() else 0

    def close(self):
        self.process.terminate()
        self.process.wait(60)
        self._log.close()


def http_get(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def good_answers(port):
    """Return what two known questions are answered."""
    image = data_uri((GOLDEN / "images" / "shapes.png").read_bytes())
    found = []
    for content in ("Hello", [{"type": "image_url", "image_url": {"url": image}}]):
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 4}
        answer = exchange(port, Sent(head("POST", CHAT, dumped(body)), path=CHAT))
        if answer is None or answer[0] != 200:
            raise Finding(f"a good request was answered {answer}")
        found.append(json.loads(answer[2])["choices"][0]["message"]["content"])
    return found


@dataclass
class Outcome:
    """What became of a campaign."""

    counts: Counter = field(default_factory=Counter)
    """By kind and status."""
    findings: list = field(default_factory=list)
    """Seed, kind and what was wrong."""
    memory: list = field(default_factory=list)
    """Resident bytes of the server, over time."""
    open_files: tuple[int, int] = (0, 0)
    slowest: float = 0.0


def campaign(server, seeds, threads=4, verbose=False):
    """Send the requests of all seeds; return what became of them."""
    outcome, mutations = Outcome(), Mutations()
    expected = good_answers(server.port)
    files = server.open_files

    def attack(seed):
        kind, sent = mutations.run(seed)
        if verbose:
            print(seed, kind, sent.data[:2000])
        start = time.monotonic()
        try:
            found = check(sent, exchange(server.port, sent))
        except (
            Finding,
            OSError,
            jsonschema.ValidationError,
            KeyError,
            UnicodeDecodeError,
        ) as error:
            found = "finding"
            outcome.findings.append((seed, kind, f"{type(error).__name__}: {str(error)[:500]}"))
        outcome.counts[kind, found] += 1
        outcome.slowest = max(outcome.slowest, time.monotonic() - start)

    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(seeds), EVERY):
            chunk = seeds[start : start + EVERY]
            list(pool.map(attack, chunk))
            try:
                answers = good_answers(server.port)
            except (Finding, OSError) as error:
                outcome.findings.append((chunk[0], "after", f"good request: {error}"))
                if server.process.poll() is not None:
                    break
                continue
            if answers != expected:
                outcome.findings.append((chunk[0], "after", f"{answers} instead of {expected}"))
            outcome.memory.append(server.memory)
    deadline = time.monotonic() + 45  # bodies that never came are given up after 30 s
    while server.open_files > files and time.monotonic() < deadline:
        time.sleep(0.2)
    outcome.open_files = files, server.open_files
    if outcome.open_files[1] > files:
        outcome.findings.append((seeds[0], "files", f"open files: {files}, {server.open_files}"))
    # The first requests fill caches and pools.
    settled = outcome.memory[len(outcome.memory) // 2 :]
    if settled and settled[-1] - settled[0] > GROWTH_BYTES:
        grown = (settled[-1] - settled[0]) / 2**20
        outcome.findings.append((seeds[0], "memory", f"grew by {grown:.0f} MB"))
    return outcome


def main():
    """Run, report, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.requests", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="how many requests")
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--threads", type=int, default=4, help="clients at once")
    parser.add_argument("--log", type=Path, default=Path("fuzz-server.log"), help="of the server")
    parser.add_argument("--verbose", action="store_true", help="show what is sent")
    arguments = parser.parse_args()
    server = Server(arguments.log, flags=FLAGS)
    start = time.monotonic()
    try:
        seeds = range(arguments.seed, arguments.seed + arguments.count)
        outcome = campaign(server, seeds, arguments.threads, arguments.verbose)
    finally:
        server.close()
    for (kind, found), count in sorted(outcome.counts.items()):
        print(f"{kind:10} {found:8} {count}")
    for seed, kind, what in outcome.findings:
        print(
            f"\n{what}\n  {kind}: python -m tests.fuzz.requests --seed {seed} --count 1 --verbose"
        )
    memory = [f"{one / 2**20:.0f}" for one in outcome.memory[:: max(1, len(outcome.memory) // 8)]]
    print(f"\nmemory in MB: {' '.join(memory)}; open files: {outcome.open_files}")
    seconds = time.monotonic() - start
    print(
        f"{outcome.counts.total()} requests in {seconds:.0f} s,"
        f" the slowest {outcome.slowest:.1f} s, {len(outcome.findings)} findings"
    )
    return 1 if outcome.findings else 0


if __name__ == "__main__":
    sys.exit(main())
