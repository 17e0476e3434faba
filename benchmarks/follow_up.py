"""How soon a second question about an image begins to be answered, in this and another version.

    python -m benchmarks.follow_up --against ../older-checkout --model tests/golden/tiny

Each version runs in a process of its own, and they take turns, so that a busy machine is as slow
for one as for the other. Processor time is shown beside wall time: it hardly depends on others.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .harness.machine import describe_machine
from .harness.photos import photo_bytes
from .harness.report import json_line, markdown_table
from .harness.timing import readable_seconds

ROOT = Path(__file__).parents[1]
WAYS = ("next turn", "caches")
# What both versions have: only names of the package itself.
_WORKER = """
import sys, time
root, model_path, image = sys.argv[1:]
sys.path.insert(0, root)
from jvlm_mlx import ChatSession, GenerationCaches, load, stream_generate
model, processor = load(model_path)
options = {"max_tokens": 4, "stop_token_ids": (), "max_crops": 1}
image = open(image, "rb").read()
first, second = "What is in this image?", "Which colors does it have, and where?"

def soon(answer):
    wall, cpu = time.perf_counter(), time.process_time()
    answer = answer()
    next(answer)
    taken = time.perf_counter() - wall, time.process_time() - cpu
    list(answer)
    return taken

def turn():
    session = ChatSession(model, processor, caches=GenerationCaches(10**9), **options)
    list(session.ask(first, image))
    caches = GenerationCaches(10**9)
    ask = lambda text: stream_generate(
        model, processor, text, image, caches=caches, **options
    )
    list(ask(first))
    return *soon(lambda: session.ask(second)), *soon(lambda: ask(second))

turn()
print("ready", flush=True)
for _ in sys.stdin:
    print(*turn(), flush=True)
"""


class _Version:
    """A checkout in a process of its own."""

    def __init__(self, root: Path, model: str, image: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(root), model, str(image)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=image.parent,
        )  # fmt: skip
        self._answer()

    def turn(self) -> tuple[float, ...]:
        """Return wall and processor seconds of each way."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return tuple(map(float, self._answer().split()))

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.close()
            raise RuntimeError("a version ended early")
        return line

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=60)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--against", type=Path, required=True, metavar="DIR", help="a checkout")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="a checkpoint")
    parser.add_argument("--image", type=Path, metavar="FILE", help="else a photo")
    parser.add_argument("--repeats", type=int, default=30)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder, "photo.jpg")
        image.write_bytes(arguments.image.read_bytes() if arguments.image else photo_bytes(2))
        versions = [
            _Version(root.resolve(), str(arguments.model.resolve()), image)
            for root in (ROOT, arguments.against)
        ]
        turns = [[version.turn() for version in versions] for _ in range(arguments.repeats)]
        for version in versions:
            version.close()
    rows, content = [], {}
    for index, (way, clock) in enumerate((way, clock) for way in WAYS for clock in ("wall", "CPU")):
        this, other = (
            statistics.median(turn[version][index] for turn in turns) for version in (0, 1)
        )
        ratio = statistics.median(turn[1][index] / turn[0][index] for turn in turns)
        rows.append(
            (f"{way}, {clock}", readable_seconds(this), readable_seconds(other), f"{ratio:.2f} x")
        )
        content[f"{way}, {clock}"] = {"this": this, "other": other, "ratio": ratio}
    print(markdown_table(("first token", "this version", "the other", "as soon"), rows))
    details: dict[str, Any] = {"machine": describe_machine(), "repeats": arguments.repeats}
    print(json_line("follow_up", {**details, "results": content}))


if __name__ == "__main__":
    main()
