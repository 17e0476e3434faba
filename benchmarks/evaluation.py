"""A benchmark file larger than memory: bounded memory, exact resume, and the speed of `jvlm batch`.

    python -m benchmarks.evaluation
    python -m benchmarks.evaluation --questions 300 --image-kb 100 --kills 3

A TSV of questions is made whose images are noise, so that they do not compress, and

1. answered at once, and again with the program killed at random times and started anew: all files
   must be the same, byte by byte;
2. the most memory that the program held is set beside that of a run over ten small images: what
   is left is what the file costs beside the model;
3. as many questions as `--compare` are answered by `jvlm evaluate` and by `jvlm batch`, in turn.

Answers have at most two tokens and images one tile: what is measured is all around the model.
"""

import argparse
import base64
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .harness.machine import describe_machine
from .harness.report import json_line, markdown_table

_ANSWER = ["--max-tokens", "2", "--max-crops", "1", "--batch-size", "8", "--quiet"]
_FILES = ("rows.jsonl", "scores.json", "report.md")


def noise_png(kilobytes: float, seed: int) -> bytes:
    """Return a PNG of random pixels with about this size."""
    side = max(8, round((kilobytes * 1000 / 3) ** 0.5))
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=0)
    return file.getvalue()


def write_questions(path: Path, rows: int, kilobytes: float) -> None:
    """Write a file of multiple choice questions."""
    with path.open("w", encoding="utf-8") as file:
        file.write("index\tquestion\tA\tB\tanswer\timage\n")
        for row in range(rows):
            image = base64.b64encode(noise_png(kilobytes, row)).decode()
            file.write(f"{row}\tWhich is it, {row}?\tred\tblue\t{'AB'[row % 2]}\t{image}\n")


def evaluate_command(model: str, data: Path, output: Path) -> list[str]:
    """Return the command that evaluates a file."""
    arguments = ["--benchmark", "AI2D_TEST", "--data", str(data), "--output", str(output)]
    return [sys.executable, "-m", "jvlm_mlx.evaluate", *arguments, "--model", model, *_ANSWER]


def run_whole(command: list[str]) -> tuple[float, float]:
    """Run a command to its end; return its seconds and the most memory it held, in bytes."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} fails")
    unit = 1 if sys.platform == "darwin" else 1024
    return time.perf_counter() - start, usage.ru_maxrss * unit


def run_killed(command: list[str], kills: int, seconds: float, seed: int) -> int:
    """Kill a command at random times, let it end at last; return how often it was killed."""
    chance = random.Random(seed)
    killed = 0
    for _ in range(kills):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(chance.uniform(0.2, 2 * seconds / kills))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
    run_whole(command)
    return killed


def compare_with_batch(model: str, folder: Path, rows: int, kilobytes: float) -> dict[str, float]:
    """Return the seconds of both subcommands for the same questions, started by turns."""
    data, requests = folder / "few.tsv", folder / "few.jsonl"
    write_questions(data, rows, kilobytes)
    with requests.open("w") as file:
        for row in range(rows):
            image = folder / f"{row}.png"
            image.write_bytes(noise_png(kilobytes, row))
            prompt = (
                f"Which is it, {row}?\nA. red\nB. blue\n"
                "Return only the letter of the best answer option"
            )
            file.write(json.dumps({"prompt": prompt, "images": [str(image)]}) + "\n")
    seconds: dict[str, list[float]] = {"evaluate": [], "batch": []}
    for turn in range(3):
        command = evaluate_command(model, data, folder / f"few-{turn}")
        seconds["evaluate"].append(run_whole(command)[0])
        batch = [sys.executable, "-m", "jvlm_mlx.batch", str(requests), "--model", model]
        output = ["-o", str(folder / f"few-{turn}.jsonl"), *_ANSWER]
        seconds["batch"].append(run_whole([*batch, *output])[0])
    return {name: min(times) for name, times in seconds.items()}


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return all figures."""
    data, small = folder / "large.tsv", folder / "small.tsv"
    write_questions(data, arguments.questions, arguments.image_kb)
    write_questions(small, 10, 10)
    _, model_memory = run_whole(evaluate_command(arguments.model, small, folder / "small"))
    command = evaluate_command(arguments.model, data, folder / "whole")
    seconds, memory = run_whole(command)
    resumed = evaluate_command(arguments.model, data, folder / "killed")
    killed = run_killed(resumed, arguments.kills, seconds, arguments.seed)
    same = all(
        (folder / "whole" / name).read_bytes() == (folder / "killed" / name).read_bytes()
        for name in _FILES
    )
    compared = compare_with_batch(arguments.model, folder, arguments.compare, arguments.image_kb)
    return {
        "questions": arguments.questions,
        "file_bytes": data.stat().st_size,
        "seconds": seconds,
        "memory_of_small_run": model_memory,
        "memory_beside_the_model": memory - model_memory,
        "kills": killed,
        "same_result": same,
        "evaluate_seconds": compared["evaluate"],
        "batch_seconds": compared["batch"],
        "throughput_of_batch": compared["batch"] / compared["evaluate"],
    }


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo")
    parser.add_argument("--questions", type=int, default=5000)
    parser.add_argument("--image-kb", type=float, default=300, help="of each image, before base64")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--compare", type=int, default=500, help="questions for both subcommands")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(arguments, Path(folder))
    rows = [
        ["file", f"{figures['questions']} questions, {figures['file_bytes'] / 1e9:.2f} GB"],
        ["memory beside the model", f"{figures['memory_beside_the_model'] / 1e6:.0f} MB"],
        ["killed, and the same result", f"{figures['kills']} times: {figures['same_result']}"],
        ["throughput beside jvlm batch", f"{figures['throughput_of_batch']:.0%}"],
    ]
    print(markdown_table(["", "measured"], rows))
    print(json_line("evaluation", {**figures, "machine": describe_machine()}))
    return 0 if figures["same_result"] else 1


if __name__ == "__main__":
    sys.exit(main())
