"""What tile borders cost: counting, position and shape of objects across them or inside tiles.

    python -m benchmarks.tile_borders
    python -m benchmarks.tile_borders --pairs 20 --chart benchmarks/charts

The paper leaves open whether an object that two tiles share is harder to see. Here questions come
in pairs that differ in one thing: the objects lie across the border of what two tiles keep, or not.
Shapes, colors, sizes, question and answer are the same. Images have the size of 1, 4 and 12 tiles;
of one tile there is no border, and the same shift is a control. Each image is shown with all its
tiles and as the thumbnail alone (`max_crops` 1), which has no borders either: a difference that is
there too is none of the tiles.

The model is the demo's unless said otherwise, which has seen up to 6 tiles. Differences are paired;
intervals are 95 % of a bootstrap over pairs.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from jvlm_mlx import Model, Processor, batch_generate, load
from jvlm_mlx.config.image_config import ImageConfig
from jvlm_mlx.demo.drawing import draw_shape, new_image
from jvlm_mlx.demo.phrases import COLORS, PHRASES, SHAPES
from jvlm_mlx.demo.scenes import jittered
from jvlm_mlx.evaluation.intervals import interval, percent

from .harness.charts import Estimate, dot_chart
from .harness.machine import describe_machine
from .harness.report import json_line, markdown_table

PLACEMENTS = ("border", "inside")
GRIDS = {1: (1, 1), 4: (2, 2), 12: (3, 4)}
"""Rows and columns of tiles by their number."""
Point = tuple[int, int]


class Pair(NamedTuple):
    """One question about two images that differ in where the objects lie."""

    question: str
    answer: str
    images: dict[str, Image.Image]
    """By placement."""


class Geometry(NamedTuple):
    """An image of whole tiles. Sizes and places are (x, y) in pixels."""

    size: Point
    borders: tuple[tuple[int, ...], tuple[int, ...]]
    """Where what one tile keeps ends and the next one's begins, across and down."""

    @classmethod
    def of(cls, grid: tuple[int, int], config: ImageConfig) -> "Geometry":
        """Return the geometry of a grid of (rows, columns) of tiles."""
        sides, borders = [], []
        axes = zip(grid, config.tile_stride, config.patch_grid, strict=True)
        for tiles, stride, patches in reversed(list(axes)):
            sides.append(tiles * stride + config.overlap)
            kept = (patches - config.overlap_margins[1]) * config.patch_size
            borders.append(tuple(kept + tile * stride for tile in range(tiles - 1)))
        return cls((sides[0], sides[1]), (borders[0], borders[1]))

    def lines(self, axis: int) -> tuple[int, ...]:
        """Return the borders across an axis; the middle, for a control, where there are none."""
        return self.borders[axis] or (self.size[axis] // 2,)

    @property
    def object_size(self) -> int:
        """Side of an object: as large beside the image as in the demo's scenes of one tile."""
        return min(self.size) // 4

    def middles(self, axis: int) -> list[int]:
        """Return the middles of what tiles keep along an axis."""
        ends = [0, *self.lines(axis), self.size[axis]]
        return [(begin + end) // 2 for begin, end in pairwise(ends)]


def position_pair(geometry: Geometry, random: Random) -> Pair:
    """Return a question for the place of one object, whose answer is the same in both images."""
    # A line through the middle third, and beside it: both are "middle" to who sees the image.
    central = [
        (axis, line)
        for axis in range(2)
        for line in geometry.lines(axis)
        if abs(line - geometry.size[axis] / 2) < 1
    ]
    axis, line = random.choice(central)
    shift = random.choice((-1, 1)) * (geometry.object_size // 2 + 2)
    end = random.choice((0, 2))  # the first or last third along the line
    along = geometry.size[1 - axis] * (1 + 2 * end) // 6
    row, column = (end, 1) if axis == 0 else (1, end)
    places = {"border": line, "inside": line + shift}
    centers = {
        name: [(place, along) if axis == 0 else (along, place)] for name, place in places.items()
    }
    shape, color = random.choice(SHAPES), random.choice(COLORS)
    phrases = PHRASES["en"]
    return Pair(
        phrases.position.format(phrases.shapes[shape].definite),
        phrases.places[3 * row + column],
        _drawn(geometry, centers, [(shape, color)], random),
    )


def shape_pair(geometry: Geometry, random: Random) -> Pair:
    """Return a question for the shape of one object."""
    shape, color = random.choice(SHAPES), random.choice(COLORS)
    phrases = PHRASES["en"]
    return Pair(
        phrases.shape.format(phrases.colors[color].of_shape),
        phrases.shapes[shape].name,
        _drawn(geometry, _centers(geometry, 1, random), [(shape, color)], random),
    )


def count_pair(geometry: Geometry, random: Random) -> Pair:
    """Return a question for the number of one to four equal shapes."""
    number = random.randint(1, 4)
    shape = random.choice(SHAPES)
    things = [(shape, random.choice(COLORS)) for _ in range(number)]
    noun = PHRASES["en"].shapes[shape]
    return Pair(
        PHRASES["en"].count[noun.gender].format(noun.plural),
        str(number),
        _drawn(geometry, _centers(geometry, number, random), things, random),
    )


def _centers(geometry: Geometry, number: int, random: Random) -> dict[str, list[Point]]:
    """Return where so many objects lie, by placement: on borders, or in the middle of tiles."""
    slots = {
        "border": [
            *((line, y) for line in geometry.lines(0) for y in geometry.middles(1)),
            *((x, line) for line in geometry.lines(1) for x in geometry.middles(0)),
        ],
        "inside": [(x, y) for x in geometry.middles(0) for y in geometry.middles(1)],
    }
    return {
        name: _apart(places, number, geometry.object_size, random) for name, places in slots.items()
    }


def _apart(slots: list[Point], number: int, size: int, random: Random) -> list[Point]:
    """Draw slots whose objects do not overlap."""
    while True:
        chosen = random.sample(slots, number)
        if all(
            max(abs(one[0] - other[0]), abs(one[1] - other[1])) >= size
            for place, one in enumerate(chosen)
            for other in chosen[:place]
        ):
            return chosen


def _drawn(
    geometry: Geometry,
    centers: dict[str, list[Point]],
    things: list[tuple[str, str]],
    random: Random,
) -> dict[str, Image.Image]:
    seed = random.random()
    images = {}
    for name, places in centers.items():
        same = Random(seed)  # paper and inks are the same in both
        image = new_image(same, *geometry.size)
        for (shape, color), (x, y) in zip(things, places, strict=True):
            ink = jittered(color, same)
            size = geometry.object_size
            draw_shape(image, shape, ink, x - size // 2, y - size // 2, size)
        images[name] = image
    return images


TASKS = {"count": count_pair, "position": position_pair, "shape": shape_pair}


def pairs_of(task: str, tiles: int, count: int, config: ImageConfig, seed: int) -> list[Pair]:
    """Return questions of a task about images of so many tiles."""
    geometry = Geometry.of(GRIDS[tiles], config)
    random = Random(f"tile borders, {task}, {tiles} tiles, seed {seed}")
    return [TASKS[task](geometry, random) for _ in range(count)]


def measure(
    model: Model, processor: Processor, pairs: list[Pair], options: dict[str, Any]
) -> dict[str, np.ndarray]:
    """Return which questions are answered right, by placement."""
    right = {}
    for placement in PLACEMENTS:
        requests = ({"prompt": pair.question, "images": pair.images[placement]} for pair in pairs)
        found = np.zeros(len(pairs))
        for response in batch_generate(model, processor, requests, max_tokens=12, **options):
            if response.result is None:
                raise SystemExit(f"a question fails: {response.error}")
            said = response.result.text.strip()
            found[response.index] = said == pairs[response.index].answer
        right[placement] = found
    return right


def settings_of(tiles: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what an image of so many tiles is shown as, with the options for it."""
    # The area of 12 tiles is above the demo's own limit.
    yield f"{tiles} tiles" if tiles > 1 else "1 tile", {"max_crops": tiles, "max_pixels": 10**6}
    if tiles > 1:
        yield f"thumbnail of {tiles}", {"max_crops": 1, "max_pixels": 10**6}


def _compare(right: dict[str, np.ndarray], control: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the difference that borders make, and what is left of it beside a control's."""
    figures: dict[str, Any] = {name: 100 * float(right[name].mean()) for name in PLACEMENTS}
    difference = percent(list(right["border"] - right["inside"]))
    own = percent(list(control["border"] - control["inside"]))
    draws = difference.draws("pairs", 0)  # the same pairs in both
    return {
        **figures,
        "difference": difference.value,
        "interval": interval(draws),
        "cost": difference.value - own.value,
        "cost_interval": interval(draws - own.draws("pairs", 0)),
    }


def _bounds(bounds: list[float]) -> str:
    return " to ".join(f"{bound:+.0f}" for bound in bounds)


def draw(lines: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Draw the last of the JSON lines of this study."""
    line = lines[-1]
    dots = {
        name: [Estimate(one[key], one[key], one[key]) for one in line["results"]]
        for name, key in (("inside tiles", "inside"), ("across borders", "border"))
    }
    dot_chart(
        folder / "tile-borders.png",
        f"Objects inside tiles or across their borders ({line['model']})",
        "Right answers (%)",
        [f"{one['task']}, {one['shown']}" for one in line["results"]],
        dots,
    )


def main() -> int:
    """Run the study."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo")
    parser.add_argument("--pairs", type=int, default=100, help="questions of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chart", type=Path, metavar="DIR", help="folder for tile-borders.png")
    arguments = parser.parse_args()
    model, processor = load(arguments.model)
    config = processor.image_processor.config
    results: list[dict[str, Any]] = []
    for task in TASKS:
        for tiles in GRIDS:
            pairs = pairs_of(task, tiles, arguments.pairs, config, arguments.seed)
            measured = {
                shown: measure(model, processor, pairs, options)
                for shown, options in settings_of(tiles)
            }
            results += [
                {"task": task, "shown": shown, **_compare(right, list(measured.values())[-1])}
                for shown, right in measured.items()
            ]
    rows = [
        [
            result["task"],
            result["shown"],
            *(f"{result[placement]:.0f} %" for placement in reversed(PLACEMENTS)),
            f"{result['difference']:+.0f} ({_bounds(result['interval'])})",
            ""
            if result["shown"].startswith("thumbnail") or result["shown"] == "1 tile"
            else f"{result['cost']:+.0f} ({_bounds(result['cost_interval'])})",
        ]
        for result in results
    ]
    head = ["task", "shown as", "inside", "across", "across - inside", "beyond the thumbnail's"]
    print(markdown_table(head, rows))
    content = {"results": results, "model": arguments.model, "machine": describe_machine()}
    print(json_line("tile_borders", content))
    if arguments.chart:
        draw([content], arguments.chart)
    return 0


if __name__ == "__main__":
    sys.exit(main())
