"""Printed numbers and words: large ones in one tile, small ones that need tiles."""

from random import Random

from PIL import Image

from .drawing import PRINT_INKS, SMALL_PRINT, draw_shape, draw_text, new_image, random_print
from .example import Turn
from .phrases import COLORS, PHRASES, SHAPES, WORDS, random_number
from .scenes import Thing, describe_things, jittered, thing_turns

TASKS = ("number", "word", "small_number")

_SIDE = 72
_WIDE_SIDE = 128
_WIDE_CELL = 42
# Left edges of a small number by column of cells; nowhere a tile ends inside it.
_NUMBER_LEFTS = ((4, 6, 8, 10, 12), (44, 46, 58, 60), (90, 92, 94, 96))


def make_large_print(
    task: str, language: str, random: Random
) -> tuple[Image.Image, list[Turn], str]:
    """Return an image of one tile with a number, a word or both; its questions and caption."""
    kinds = ["number", "word"]
    random.shuffle(kinds)
    if random.random() < 0.3:
        kinds = [task]
    image = new_image(random, _SIDE, _SIDE)
    ink = random.choice(PRINT_INKS)
    height = _SIDE // len(kinds)
    turns, captions = [], []
    for line, kind in enumerate(kinds):
        if kind == "number":
            text = random_number(random, random.randint(2, 3))
        else:
            text = random.choice(WORDS)
        size, left = random_print(random, text, _SIDE)
        baseline = line * height + height // 2 + random.randrange(2, 14, 2)
        draw_text(image, text, ink, left, baseline, size)
        turn, caption = print_turn(kind, kind, text, language)
        turns.append(turn)
        captions.append(caption)
    return image, turns, ", ".join(captions)


def make_small_number(language: str, random: Random) -> tuple[Image.Image, list[Turn], str]:
    """Return an image of two by two tiles: large shapes and a number in small print."""
    image = new_image(random, _WIDE_SIDE, _WIDE_SIDE)
    count = random.randint(1, 2)
    *cells, number_cell = random.sample(range(9), count + 1)
    shapes, colors = random.sample(SHAPES, count), random.sample(COLORS, count)
    things = [Thing(*parts) for parts in zip(shapes, colors, sorted(cells), strict=True)]
    for thing in things:
        size = random.randint(31, 36)
        row, column = divmod(thing.cell, 3)
        left, top = (
            1 + place * _WIDE_CELL + (_WIDE_CELL - size) // 2 + random.randint(-2, 2)
            for place in (column, row)
        )
        draw_shape(image, thing.shape, jittered(thing.color, random), left, top, size)
    text = random_number(random, 3)
    row, column = divmod(number_cell, 3)
    left = random.choice(_NUMBER_LEFTS[column])
    baseline = row * _WIDE_CELL + random.randrange(18, 36, 2)
    draw_text(image, text, random.choice(PRINT_INKS), left, baseline, SMALL_PRINT)
    turn, caption = print_turn("number", "small_number", text, language)
    turns = [turn, *thing_turns(things, language)]
    return image, turns, f"{caption}, {describe_things(things, language)}"


def print_turn(kind: str, task: str, text: str, language: str) -> tuple[Turn, str]:
    """Return question and caption of a printed number or word."""
    phrases = PHRASES[language]
    if kind == "number":
        return Turn(phrases.number, text, task), phrases.number_in_caption.format(text)
    return Turn(phrases.word, text, task), phrases.word_in_caption.format(text)
