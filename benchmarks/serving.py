"""Load on the server: requests a second, first token and inter-token times by number of clients.

    python -m benchmarks.serving
    python -m benchmarks.serving --model DIR --clients 1 2 4 8 16 --requests 64

Starts `jvlm serve` in a process of its own and asks it as a client would, with different images
and with one image for all requests, so that the caches have something to do. Every answer is
compared with that of a single run in this process; wrong ones are counted.
"""

import argparse
import base64
import http.client
import io
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Any

from PIL import Image

import jvlm_mlx
from jvlm_mlx.demo.tasks import IMAGE_TASKS, example_at

from .harness.machine import describe_machine
from .harness.report import json_line, markdown_table

MODEL = "jina-vlm"


@dataclass(frozen=True)
class Question:
    """One request, and what a single run answers."""

    image: Image.Image
    text: str
    expected: str

    @property
    def body(self) -> bytes:
        """The request as a stream of tokens."""
        buffer = io.BytesIO()
        self.image.save(buffer, "PNG")
        uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        content = [
            {"type": "image_url", "image_url": {"url": uri}},
            {"type": "text", "text": self.text},
        ]
        messages = [{"role": "user", "content": content}]
        return json.dumps({"model": MODEL, "stream": True, "messages": messages}).encode()


@dataclass(frozen=True)
class Answer:
    """What came back, and when."""

    text: str
    first: float
    """Seconds to the first text."""
    gaps: tuple[float, ...]
    """Seconds between two texts."""


def make_questions(model: str, count: int, *, repeated: bool, max_tokens: int) -> list[Question]:
    """Return questions about drawn images with the answers of single runs."""
    loaded, processor = jvlm_mlx.load(model)
    questions = []
    for index in range(count):
        example = example_at(99, 0 if repeated else index, IMAGE_TASKS, ("en",), held_out=True)
        assert example.image is not None
        turn = example.turns[index % len(example.turns)]
        result = jvlm_mlx.generate(
            loaded, processor, turn.question, example.image, max_tokens=max_tokens
        )
        questions.append(Question(example.image, turn.question, result.text))
    return questions


def ask(port: int, question: Question) -> Answer:
    """Ask one question and take the times of the stream."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    start = time.perf_counter()
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", question.body, headers)
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(f"status {response.status}: {response.read()[:300]!r}")
    texts, times = [], []
    for line in response:
        if line.startswith(b"data: {"):
            choices = json.loads(line[6:])["choices"]
            text = choices[0]["delta"].get("content") if choices else None
            if text:
                texts.append(text)
                times.append(time.perf_counter())
    connection.close()
    if not times:
        times = [time.perf_counter()]
    gaps = tuple(after - before for before, after in itertools.pairwise(times))
    return Answer("".join(texts), times[0] - start, gaps)


def measure(port: int, questions: Sequence[Question], clients: int) -> dict[str, float]:
    """Ask all questions with so many clients at once."""
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(lambda question: ask(port, question), questions))
    seconds = time.perf_counter() - start
    gaps = [gap for answer in answers for gap in answer.gaps]
    wrong = sum(one.text != two.expected for one, two in zip(answers, questions, strict=True))
    return {
        "clients": clients,
        "requests_per_second": len(questions) / seconds,
        "first_token": median(answer.first for answer in answers),
        "inter_token": median(gaps) if gaps else 0.0,
        "wrong": wrong,
    }


def start_server(model: str, clients: int, max_tokens: int) -> tuple[subprocess.Popen[str], int]:
    """Start the server; return its process and its port, when it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "jvlm_mlx.serve", "--model", model, "--port", "0", "--quiet",
         "--max-tokens", str(max_tokens), "--max-concurrent", str(max(8, clients)),
         "--max-queue", "256"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    port = int(process.stderr.readline().rpartition(":")[2])
    threading.Thread(target=process.stderr.read, daemon=True).start()
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/health")
        if connection.getresponse().status == 200:
            return process, port
        time.sleep(0.1)


def main() -> None:
    """Run and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--model", default="demo", help="folder, repository or demo")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--requests", type=int, default=48, help="for each number of clients")
    parser.add_argument("--max-tokens", type=int, default=24)
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []
    for repeated in (False, True):
        questions = make_questions(
            arguments.model, arguments.requests, repeated=repeated, max_tokens=arguments.max_tokens
        )
        for clients in arguments.clients:
            # A fresh server for each row: caches of the row before would make it faster.
            process, port = start_server(
                arguments.model, max(arguments.clients), arguments.max_tokens
            )
            try:
                found = measure(port, questions, clients)
            finally:
                process.terminate()
                process.wait()
            results.append({"repeated": repeated, **found})
    rows = [
        (
            "one image" if row["repeated"] else "different images", row["clients"],
            f"{row['requests_per_second']:.1f}", f"{row['first_token'] * 1e3:.0f} ms",
            f"{row['inter_token'] * 1e3:.1f} ms", row["wrong"],
        )
        for row in results
    ]  # fmt: skip
    head = ("images", "clients", "requests/s", "first token", "between tokens", "wrong answers")
    print(markdown_table(head, rows))
    content = {"machine": describe_machine(), "arguments": vars(arguments), "results": results}
    print(json_line("serving", content))


if __name__ == "__main__":
    main()
