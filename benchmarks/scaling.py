"""Time and memory as tiles, prompts and answers grow: linear where the model is.

python -m benchmarks.scaling --layers 0.1 --chart benchmarks/charts
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from jvlm_mlx.diagnostics.sample_model import random_model
from jvlm_mlx.model import Model

from .harness.charts import Estimate, line_chart
from .harness.machine import describe_machine
from .harness.models import released_model_config
from .harness.report import json_line, markdown_table
from .harness.timing import Timing, measure

TILES = (1, 2, 4, 8)
PROMPTS = (128, 256, 512, 1024)
CONTEXTS = (128, 512, 1024, 2048)
GROWTHS = {
    "tiles": ("Tower and connector, one tile at a time", "Tiles"),
    "prompt": ("Prefill", "Prompt (tokens)"),
    "decode step, by context": ("One decode step", "Context (tokens)"),
}
"""Title and horizontal axis of each chart."""


def tile_timings(model: Model, repeats: int) -> dict[int, Timing]:
    """Time tower and connector for several numbers of tiles, one at a time."""
    tower = model.config.tower
    rows, columns = (
        -(-side // step)
        for side, step in zip(tower.patch_grid, model.config.connector.pooling_size, strict=True)
    )
    windows = rows * columns

    def encode(tiles: int) -> mx.array:
        shape = (1, tiles, tower.num_patches)
        pixels = np.random.default_rng(0).uniform(-1, 1, (*shape, tower.patch_values))
        positions = np.arange(tiles * windows).reshape(1, tiles, windows)
        return model.encode_images(
            pixels.astype(np.float32), np.ones(shape, np.int8), positions, tile_group_size=1
        )

    return _measure({tiles: lambda tiles=tiles: encode(tiles) for tiles in TILES}, repeats)


def prompt_timings(model: Model, repeats: int) -> dict[int, Timing]:
    """Time the reading of prompts of several lengths."""

    def read(tokens: int) -> list[Any]:
        cache = model.make_cache()
        model(mx.zeros((1, tokens), mx.int32), cache=cache)
        return [array for layer in cache for array in layer.state[:2]]

    return _measure({tokens: lambda tokens=tokens: read(tokens) for tokens in PROMPTS}, repeats)


def decode_timings(model: Model, repeats: int) -> dict[int, Timing]:
    """Time one decode step behind contexts of several lengths."""
    attention = model.config.decoder.block.attention
    steps: dict[int, Any] = {}
    for tokens in CONTEXTS:
        shape = (1, attention.num_key_value_heads, tokens, attention.head_dim)
        cache = model.make_cache()
        for layer in cache:
            layer.update_and_fetch(mx.zeros(shape) + 0.1, mx.zeros(shape) + 0.1)
        mx.eval([layer.state for layer in cache])
        steps[tokens] = lambda cache=cache: model(mx.array([[5]]), cache=cache)
    return _measure(steps, repeats)


def _measure(works: dict[int, Any], repeats: int) -> dict[int, Timing]:
    found = measure({str(size): work for size, work in works.items()}, repeats=repeats)
    return {int(size): timing for size, timing in found.items()}


def draw(lines: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Draw the last of the JSON lines of this benchmark."""
    for name, (title, label) in GROWTHS.items():
        timings = {int(size): timing for size, timing in lines[-1][name].items()}
        measured = [Estimate.of_timing(timing) for timing in timings.values()]
        file = folder / f"scaling-{name.split()[0]}.png"
        line_chart(file, title, label, "Seconds", {"measured": (list(timings), measured)})


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--layers", type=float, default=0.1, help="fraction of the layers to keep")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--chart", type=Path, metavar="DIR", help="write PNGs (needs matplotlib)")
    arguments = parser.parse_args()
    model = random_model(released_model_config(arguments.layers))
    found = {
        "tiles": tile_timings(model, arguments.repeats),
        "prompt": prompt_timings(model, arguments.repeats),
        "decode step, by context": decode_timings(model, arguments.repeats),
    }
    for name, timings in found.items():
        first = min(timings)
        rows = [
            (
                size,
                str(timing),
                f"{timing.median / timings[first].median:.2f}x",
                f"{size / first:.0f}x",
                f"{timing.peak_bytes / 1e9:.3f}",
            )
            for size, timing in timings.items()
        ]
        print(markdown_table((name, "time", "grows", "size grows", "peak GB"), rows), end="\n\n")
    result = {
        name: {size: timing.summary() for size, timing in timings.items()}
        for name, timings in found.items()
    }
    content = {"machine": describe_machine(), "layers": arguments.layers, **result}
    print(json_line("scaling", content))
    if arguments.chart:
        draw([content], arguments.chart)


if __name__ == "__main__":
    main()
