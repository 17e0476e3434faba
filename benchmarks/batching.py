"""Throughput of `batch_generate` by batch size.

    python -m benchmarks.batching --layers 0.1 --dtype float32
    python -m benchmarks.batching --model DIR --requests 64 --max-tokens 64 --sizes 1 2 4 8 16 32

Every request asks something else about one photo, and every fourth answer is half as long. Rates
are of the whole run, image and prompt of every request included, and of decoding alone: the same
requests when images and prompts are cached already, from a run before that does not count.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from jvlm_mlx import GenerationCaches, Model, Processor, batch_generate

from .harness.charts import Estimate, line_chart
from .harness.machine import describe_machine
from .harness.models import add_checkpoint_arguments, loaded_checkpoint
from .harness.photos import TILES, photo_bytes
from .harness.report import json_line, markdown_table
from .harness.timing import readable_seconds


def make_requests(count: int, tiles: int, max_tokens: int) -> list[dict[str, Any]]:
    """Return questions of which every fourth has a short answer."""
    image = photo_bytes(tiles)
    return [
        {
            "prompt": f"Question {number}: what is in this image?",
            "images": image,
            "max_crops": TILES[tiles],
            "max_tokens": max(1, max_tokens // (2 if number % 4 == 0 else 1)),
        }
        for number in range(count)
    ]


def timed(
    model: Model, processor: Processor, requests: list[dict[str, Any]], size: int, **options: Any
) -> tuple[float, int, list[tuple[int, ...]]]:
    """Return seconds, peak memory in bytes, and the tokens of each request; show progress."""
    mx.clear_cache()
    mx.reset_peak_memory()
    start = time.perf_counter()
    found: dict[int, tuple[int, ...]] = {}
    for answer in batch_generate(
        model, processor, requests, batch_size=size, stop_token_ids=(), **options
    ):
        if answer.result is None:
            raise RuntimeError(answer.error)
        found[answer.index] = answer.result.token_ids
        print(
            f"\rbatch size {size}: {len(found)} of {len(requests)} requests",
            end="", file=sys.stderr, flush=True,
        )  # fmt: skip
    seconds = time.perf_counter() - start
    print(f" in {readable_seconds(seconds)}", file=sys.stderr)
    return seconds, mx.get_peak_memory(), [found[index] for index in range(len(requests))]


def draw(lines: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Draw the last of the JSON lines of this benchmark."""
    results = lines[-1]["results"]
    sizes = [one["batch_size"] for one in results]
    speeds = {
        name: (sizes, [Estimate(one[key], one[key], one[key]) for one in results])
        for name, key in (
            ("decoding alone", "decode_tokens_per_second"),
            ("whole run", "tokens_per_second"),
        )
    }
    file = folder / "batching.png"
    line_chart(file, "Answers made together", "Batch size", "Tokens per second", speeds)


def main() -> int:
    """Run, print, and return 1 if answers depend on the batch size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add_checkpoint_arguments(parser)
    parser.add_argument("--tiles", type=int, choices=TILES, default=2)
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--chart", type=Path, metavar="DIR", help="write a PNG (needs matplotlib)")
    arguments = parser.parse_args()
    requests = make_requests(arguments.requests, arguments.tiles, arguments.max_tokens)
    results = []
    same = True
    with loaded_checkpoint(arguments.model, arguments.layers, arguments.dtype) as loaded:
        warm = GenerationCaches(8 * 10**9)
        _, _, expected = timed(*loaded, requests, max(arguments.sizes), caches=warm)
        for size in arguments.sizes:
            whole, peak, answers = timed(*loaded, requests, size)
            decoding, _, again = timed(*loaded, requests, size, caches=warm)
            same = same and answers == expected == again
            count = sum(map(len, answers))
            results.append(
                {
                    "batch_size": size,
                    "tokens_per_second": count / whole,
                    "decode_tokens_per_second": count / decoding,
                    "requests_per_minute": 60 * len(requests) / whole,
                    "peak_bytes": peak,
                }
            )
    alone = results[0]["decode_tokens_per_second"]
    print(
        markdown_table(
            ("batch size", "requests/min", "tokens/s", "decoding alone", "gain", "peak memory"),
            [
                (
                    one["batch_size"],
                    f"{one['requests_per_minute']:.1f}",
                    f"{one['tokens_per_second']:.1f}",
                    f"{one['decode_tokens_per_second']:.1f}",
                    f"{one['decode_tokens_per_second'] / alone:.2f} x",
                    f"{one['peak_bytes'] / 1e9:.2f} GB",
                )
                for one in results
            ],
        )
    )
    print("answers do not depend on the batch size" if same else "ANSWERS DIFFER")
    content = {
        "machine": describe_machine(),
        "arguments": {**vars(arguments), "chart": None},
        "results": results,
        "same_answers": same,
    }
    print(json_line("batching", content))
    if arguments.chart:
        draw([content], arguments.chart)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
