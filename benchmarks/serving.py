"""Load on the server: requests a second, first token and inter-token times by number of clients.

    python -m benchmarks.serving
    python -m benchmarks.serving --model DIR --clients 1 2 4 8 16 --requests 64
    python -m benchmarks.serving --against mlx-vlm --peer-python peer/bin/python

Starts `jvlm serve` in a process of its own and asks it as a client would, with different images
and with one image for all requests, so that the caches have something to do. Every answer is
compared with that of a single run in this process; wrong ones are counted, and requests without
an answer are, too.

`--against mlx-vlm` asks mlx-vlm's server the same, in turn with this one, on the same weights; see
`harness/peer_server.py`. The package and what its server needs may be in an environment of their
own, whose Python is `--peer-python`.
"""

import argparse
import base64
import http.client
import io
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

import jvlm_mlx
from jvlm_mlx.demo.tasks import IMAGE_TASKS, example_at

from .harness.machine import describe_machine
from .harness.report import json_line, markdown_table

ROOT = Path(__file__).parents[1]
MODEL = "jina-vlm"
WARM_UP = json.dumps({
    "model": MODEL, "stream": True, "temperature": 0, "max_tokens": 4,
    "messages": [{"role": "user", "content": "What is 2 + 3?"}],
}).encode()  # fmt: skip


@dataclass(frozen=True)
class Question:
    """One request, and what a single run answers."""

    image: Image.Image
    text: str
    expected: str

    def body(self, max_tokens: int) -> bytes:
        """Return the request of a greedy answer as a stream."""
        buffer = io.BytesIO()
        self.image.save(buffer, "PNG")
        uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        content = [
            {"type": "image_url", "image_url": {"url": uri}},
            {"type": "text", "text": self.text},
        ]
        body = {
            "model": MODEL, "stream": True, "temperature": 0, "max_tokens": max_tokens,
            "messages": [{"role": "user", "content": content}],
        }  # fmt: skip
        return json.dumps(body).encode()


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


def ask(port: int, body: bytes) -> Answer | None:
    """Ask one question and take the times of the stream; None where there is no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    start = time.perf_counter()
    texts, times = [], []
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", body, headers)
        response = connection.getresponse()
        if response.status != 200:
            return None
        for line in response:
            if line.startswith(b"data: {"):
                choices = json.loads(line[6:]).get("choices")
                text = choices[0]["delta"].get("content") if choices else None
                if text:
                    texts.append(text)
                    times.append(time.perf_counter())
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    if not times:
        return None
    gaps = tuple(after - before for before, after in itertools.pairwise(times))
    return Answer("".join(texts), times[0] - start, gaps)


def measure(
    port: int, questions: Sequence[Question], clients: int, max_tokens: int
) -> dict[str, float | None]:
    """Ask all questions with so many clients at once."""
    bodies = [question.body(max_tokens) for question in questions]
    ask(port, WARM_UP)
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(partial(ask, port), bodies))
    seconds = time.perf_counter() - start
    given = [answer for answer in answers if answer is not None]
    gaps = [gap for answer in given for gap in answer.gaps]
    right = sum(
        one is not None and one.text.strip() == two.expected.strip()
        for one, two in zip(answers, questions, strict=True)
    )
    return {
        "clients": clients,
        "requests_per_second": len(given) / seconds,
        "first_token": median(answer.first for answer in given) if given else None,
        "inter_token": median(gaps) if gaps else None,
        "wrong": len(given) - right,
        "failed": len(questions) - len(given),
    }


def server_command(arguments: argparse.Namespace, port: int) -> list[str]:
    """Return the command of this project's server."""
    most = max(8, *arguments.clients)
    return [
        sys.executable, "-m", "jvlm_mlx.serve", "--model", arguments.model, "--port", str(port),
        "--quiet", "--max-concurrent", str(most), "--max-queue", "256",
    ]  # fmt: skip


def peer_command(arguments: argparse.Namespace, port: int) -> list[str]:
    """Return the command of mlx-vlm's server."""
    module = "benchmarks.harness.peer_server"
    return [arguments.peer_python, "-m", module, "--model", arguments.model, "--port", str(port)]


@contextmanager
def serving(command: Callable[[int], list[str]]) -> Iterator[int]:
    """Run a server; yield its port once it has answered."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command(port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    try:
        deadline = time.monotonic() + 120
        while ask(port, WARM_UP) is None:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server does not answer: {' '.join(command(port))}")
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


def milliseconds(seconds: float | None) -> str:
    """Return a time as the table shows it; without answers there is none."""
    return "-" if seconds is None else f"{seconds * 1e3:.{0 if seconds > 0.1 else 1}f} ms"


def main() -> None:
    """Run and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--model", default="demo", help="folder, repository or demo")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--requests", type=int, default=48, help="for each number of clients")
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--against", choices=("mlx-vlm",), help="ask the peer's server as well")
    parser.add_argument("--peer-python", default=sys.executable, help="that has the peer")
    arguments = parser.parse_args()
    servers = {"jvlm-mlx": server_command}
    if arguments.against is not None:
        servers[arguments.against] = peer_command
    results: list[dict[str, Any]] = []
    for repeated in (False, True):
        questions = make_questions(
            arguments.model, arguments.requests, repeated=repeated, max_tokens=arguments.max_tokens
        )
        for clients in arguments.clients:
            for name, command in servers.items():
                # A fresh server for each row: caches of the row before would make it faster.
                with serving(partial(command, arguments)) as port:
                    found = measure(port, questions, clients, arguments.max_tokens)
                results.append({"server": name, "repeated": repeated, **found})
    rows = [
        (
            row["server"], "one image" if row["repeated"] else "different images", row["clients"],
            f"{row['requests_per_second']:.1f}", milliseconds(row["first_token"]),
            milliseconds(row["inter_token"]), row["wrong"], row["failed"],
        )
        for row in results
    ]  # fmt: skip
    head = ("server", "images", "clients", "requests/s", "first token", "between tokens", "wrong",
            "no answer")  # fmt: skip
    print(markdown_table(head, rows))
    content = {"machine": describe_machine(), "arguments": vars(arguments), "results": results}
    print(json_line("serving", content))


if __name__ == "__main__":
    main()
