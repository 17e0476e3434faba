"""Synthetic tiles: one tile full of characters, shapes and bars, with a map of what is where.

They pretrain the vision tower and the connector before any text is learned.
"""

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from jvlm_mlx.demo.drawing import (
    LARGE_PRINT,
    PRINT_INKS,
    SMALL_PRINT,
    draw_shape,
    draw_text,
    new_image,
    text_width,
)
from jvlm_mlx.demo.phrases import COLORS, DIGITS, LETTERS, SHAPES, WORDS, random_number
from jvlm_mlx.demo.scenes import jittered

from .architecture import PATCH_SIZE, TILE_SIZE

SIGNS = (*DIGITS, *LETTERS)
KINDS = (*SIGNS, *SHAPES, "bar")
"""What a place can show; 0 in the map stands for nothing, 1 for the first of these."""
CELL = 4
"""Pixels of a side of what the map has a value for: a quarter of a patch."""
_CELLS = TILE_SIZE // CELL
_FONT_SIZES = (SMALL_PRINT, SMALL_PRINT, *LARGE_PRINT)
_CAPITALS = 0.72
"""Height of a capital letter as a share of the font size."""


class SyntheticTile(NamedTuple):
    """An image and what it shows."""

    image: Image.Image
    kinds: NDArray[np.int32]
    """(18, 18): place in `KINDS` plus 1 of what covers the middle of a cell, or 0."""
    colors: NDArray[np.int32]
    """(18, 18): place in `COLORS` plus 1 under a shape or bar, else 0."""


def make_synthetic_tile(random: Random) -> SyntheticTile:
    """Return a new image of one tile, 72 x 72."""
    tile = SyntheticTile(
        new_image(random, TILE_SIZE, TILE_SIZE),
        np.zeros((_CELLS, _CELLS), np.int32),
        np.zeros((_CELLS, _CELLS), np.int32),
    )
    top = random.randrange(-4, 8)
    while top < TILE_SIZE - 8:
        kind = random.random()
        if kind < 0.65:
            height = _print_line(tile, top, random)
        elif kind < 0.9:
            height = _shape_row(tile, top, random)
        else:
            height = _bar_row(tile, top, random)
        top += height + random.randint(2, 9)
    return tile


def patches_of(examples: Sequence[SyntheticTile]) -> NDArray[np.float32]:
    """Return what the processor makes of the only tile of each image: (T, P, V)."""
    grid = TILE_SIZE // PATCH_SIZE
    pixels = np.stack([np.asarray(example.image) for example in examples]).astype(np.float32)
    # (T, H, W, 3) -> (T, rows, patch, columns, patch 3) -> (T, rows, columns, patch, patch 3)
    patches = (pixels / 255 * 2 - 1).reshape(-1, grid, PATCH_SIZE, grid, PATCH_SIZE * 3)
    return patches.swapaxes(2, 3).reshape(len(examples), grid**2, -1)


def _print_line(tile: SyntheticTile, top: int, random: Random) -> int:
    size, ink = random.choice(_FONT_SIZES), random.choice(PRINT_INKS)
    height = round(size * _CAPITALS)
    # As all print of the demo, on even lines.
    height += (top + height) % 2
    pen = random.randint(-8, 30)
    while pen < TILE_SIZE:
        text = _text(random)
        draw_text(tile.image, text, ink, pen, top + height, size)
        for sign in text:
            # One pixel lies between a sign and the next.
            right = pen + text_width(sign, size) + 1
            _note(tile.kinds, (pen, top, right, top + height), 1 + KINDS.index(sign))
            pen = right
        pen += random.randint(5, 40)
    return height


def _text(random: Random) -> str:
    chance = random.random()
    if chance < 0.45:
        return random_number(random, random.randint(1, 3))
    if chance < 0.7:
        return random.choice(WORDS)
    return "".join(random.choice(SIGNS) for _ in range(random.randint(1, 5)))


def _shape_row(tile: SyntheticTile, top: int, random: Random) -> int:
    largest = random.choice((11, 19, 19, 19, 36))
    left = random.randint(-4, 20)
    while left < TILE_SIZE - 8:
        size = random.randint(max(9, largest - 5), largest)
        down = top + random.randint(0, largest - size)
        shape, color = random.choice(SHAPES), random.choice(COLORS)
        draw_shape(tile.image, shape, jittered(color, random), left, down, size)
        _note_colored(tile, (left, down, left + size, down + size), shape, color)
        left += size + random.randint(1, 24)
    return largest


def _bar_row(tile: SyntheticTile, top: int, random: Random) -> int:
    tallest = random.randint(12, 60)
    left = random.randint(0, 20)
    draw = ImageDraw.Draw(tile.image)
    while left < TILE_SIZE - 8:
        height, width, color = random.randint(4, tallest), 16, random.choice(COLORS)
        box = (left, top + tallest - height, left + width, top + tallest)
        draw.rectangle((*box[:2], box[2] - 1, box[3] - 1), fill=jittered(color, random))
        _note_colored(tile, box, "bar", color)
        left += width + random.randint(8, 24)
    return tallest


def _note_colored(
    tile: SyntheticTile, box: tuple[int, int, int, int], kind: str, color: str
) -> None:
    _note(tile.kinds, box, 1 + KINDS.index(kind))
    _note(tile.colors, box, 1 + COLORS.index(color))


def _note(cells: NDArray[np.int32], box: tuple[int, int, int, int], value: int) -> None:
    """Write a value to all cells whose middle is in a box of left, top, right, bottom."""
    left, top, right, bottom = (max(0, (side + CELL // 2 - 1) // CELL) for side in box)
    cells[top:bottom, left:right] = value
