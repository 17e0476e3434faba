"""Crowded pages with their transcripts, which pretrain the whole demo model.

A page holds as much as there is room for, and its caption transcribes all of it in reading order.
So one page teaches as much as ten images with a question each, and the model learns reading order
before it learns to search. All transcripts are in English.
"""

from random import Random

from PIL import Image

from jvlm_mlx.demo.drawing import (
    LARGE_PRINT,
    PRINT_INKS,
    SMALL_PRINT,
    draw_shape,
    draw_text,
    new_image,
    random_print,
    text_width,
)
from jvlm_mlx.demo.example import Example
from jvlm_mlx.demo.phrases import COLORS, DIGITS, LETTERS, SHAPES, WORDS, random_number
from jvlm_mlx.demo.scenes import jittered, name_shape
from jvlm_mlx.demo.tasks import is_held_out

PAGES = ("shapes_page", "signs_page", "print_page", "small_print_page")
"""From the easiest to the hardest."""

_LANGUAGE = "en"
_SIDE, _CELL = 72, 24
_WIDE_SIDE = 128
_COLUMNS = ((3, 61), (67, 125))
"""Left and right of the columns of small print: no word is cut by the edge of a tile."""
_LINES = 6
_SIGNS = (*DIGITS, *DIGITS, *LETTERS)


def make_page(kind: str, random: Random) -> Example:
    """Return a page with its caption and no questions.

    Args:
        kind: one of `PAGES`.
        random: all chance comes from here.
    """
    if kind == "shapes_page":
        image, caption = _cells(random, signs=0.0)
    elif kind == "signs_page":
        image, caption = _cells(random, signs=0.75)
    elif kind == "print_page":
        image, caption = _print(random)
    else:
        image, caption = _small_print(random)
    return Example(kind, _LANGUAGE, image, (), caption)


def _cells(random: Random, *, signs: float) -> tuple[Image.Image, str]:
    """Return nine cells, each with a shape or, with that probability, a letter or digit."""
    image = new_image(random, _SIDE, _SIDE)
    ink = random.choice(PRINT_INKS)
    said = []
    for cell in range(9):
        row, column = divmod(cell, 3)
        right, down = (place * _CELL + random.randint(-2, 2) for place in (column, row))
        if random.random() < signs:
            sign, size = random.choice(_SIGNS), random.choice(LARGE_PRINT)
            left = right + (_CELL - text_width(sign, size)) // 2
            draw_text(image, sign, ink, left, (down + 19) // 2 * 2, size)
            said.append(sign)
        else:
            shape, color = random.choice(SHAPES), random.choice(COLORS)
            size = random.randint(17, 19)
            margin = (_CELL - size) // 2
            inked = jittered(color, random)
            draw_shape(image, shape, inked, right + margin, down + margin, size)
            said.append(name_shape(shape, color, "", _LANGUAGE))
    return image, ", ".join(said)


def _print(random: Random) -> tuple[Image.Image, str]:
    """Return three lines in large print, each a number or a word."""
    image = new_image(random, _SIDE, _SIDE)
    ink = random.choice(PRINT_INKS)
    said = []
    for line in range(3):
        text = _something_printed(random)
        size, left = random_print(random, text, _SIDE)
        draw_text(image, text, ink, left, line * _CELL + random.randrange(16, 22, 2), size)
        said.append(text)
    return image, ", ".join(said)


def _small_print(random: Random) -> tuple[Image.Image, str]:
    """Return two columns of small print, with gaps, on a page of two by two tiles."""
    image = new_image(random, _WIDE_SIDE, _WIDE_SIDE)
    ink = random.choice(PRINT_INKS)
    said = []
    height = _WIDE_SIDE // _LINES
    for line in range(_LINES):
        for start, end in _COLUMNS:
            text = _something_printed(random)
            if random.random() < 0.3 or text_width(text, SMALL_PRINT) > end - start:
                continue
            left = random.randint(start, end - text_width(text, SMALL_PRINT))
            baseline = line * height // 2 * 2 + random.randrange(12, 18, 2)
            draw_text(image, text, ink, left, baseline, SMALL_PRINT)
            said.append(text)
    return image, ", ".join(said)


def _something_printed(random: Random) -> str:
    if random.random() < 0.5:
        return random_number(random, random.randint(1, 3))
    return random.choice(WORDS)


def page_at(seed: int, place: int, kind: str) -> Example:
    """Return one page of the series of its kind, none of them held out."""
    random = Random(f"jvlm-mlx demo, seed {seed}, {kind} {place}")
    while True:
        example = make_page(kind, random)
        if example.image is not None and not is_held_out(example.image):
            return example
