"""Scenes of colored shapes: color, shape, count, position."""

from random import Random
from typing import NamedTuple

from PIL import Image

from .drawing import COLOR_INKS, Ink, draw_shape, new_image
from .example import Turn
from .phrases import COLORS, PHRASES, SHAPES

TASKS = ("color", "shape", "count", "position")

_SIDE = 72
_CELL = 24
_JITTER = 2
_INK_JITTER = 10


class Thing(NamedTuple):
    """A shape in one of nine cells, numbered row by row."""

    shape: str
    color: str
    cell: int


def make_scene(task: str, random: Random) -> tuple[Image.Image, list[Thing]]:
    """Return an image of one tile and what is on it, row by row.

    A scene made for counting has one shape several times, any other scene has all its shapes
    and colors once.
    """
    things = _countable_things(random) if task == "count" else _different_things(random)
    image = new_image(random, _SIDE, _SIDE)
    for thing in things:
        size = random.randint(17, 19)
        row, column = divmod(thing.cell, 3)
        left, top = (
            place * _CELL + (_CELL - size) // 2 + random.randint(-_JITTER, _JITTER)
            for place in (column, row)
        )
        draw_shape(image, thing.shape, jittered(thing.color, random), left, top, size)
    return image, things


def jittered(color: str, random: Random) -> Ink:
    """Return the ink of a color, a little lighter or darker."""
    red, green, blue = (
        min(255, max(0, value + random.randint(-_INK_JITTER, _INK_JITTER)))
        for value in COLOR_INKS[color]
    )
    return red, green, blue


def thing_turns(things: list[Thing], language: str) -> list[Turn]:
    """Return all questions for color, shape and position with one right answer."""
    phrases = PHRASES[language]
    shapes = [thing.shape for thing in things]
    colors = [thing.color for thing in things]
    turns = []
    for thing in things:
        noun, color = phrases.shapes[thing.shape], phrases.colors[thing.color]
        if shapes.count(thing.shape) == 1:
            question = phrases.color.format(noun.definite)
            turns.append(Turn(question, color.of_noun[noun.gender], "color"))
            question = phrases.position.format(noun.definite)
            turns.append(Turn(question, phrases.places[thing.cell], "position"))
        if colors.count(thing.color) == 1:
            turns.append(Turn(phrases.shape.format(color.of_shape), noun.name, "shape"))
    return turns


def count_turns(things: list[Thing], language: str) -> list[Turn]:
    """Return the questions for the number of each shape there is, and of all."""
    phrases = PHRASES[language]
    shapes = [thing.shape for thing in things]
    turns = [Turn(phrases.count_objects, str(len(things)), "count")]
    for shape in SHAPES:
        if shape in shapes:
            noun = phrases.shapes[shape]
            question = phrases.count[noun.gender].format(noun.plural)
            turns.append(Turn(question, str(shapes.count(shape)), "count"))
    return turns


def describe_things(things: list[Thing], language: str) -> str:
    """Return "red circle top left, blue square middle", row by row."""
    places = PHRASES[language].places
    return ", ".join(
        name_shape(thing.shape, thing.color, places[thing.cell], language) for thing in things
    )


def name_shape(shape: str, color: str, place: str, language: str) -> str:
    """Return "red circle top left", or "red circle" if the place is empty."""
    phrases = PHRASES[language]
    noun = phrases.shapes[shape]
    words = phrases.colors[color].at_noun[noun.gender]
    return phrases.object_in_caption.format(color=words, shape=noun.name, place=place).strip()


def _different_things(random: Random) -> list[Thing]:
    count = random.randint(2, 4)
    cells = sorted(random.sample(range(9), count))
    return [
        Thing(shape, color, cell)
        for shape, color, cell in zip(
            random.sample(SHAPES, count), random.sample(COLORS, count), cells, strict=True
        )
    ]


def _countable_things(random: Random) -> list[Thing]:
    repeated = random.randint(1, 5)
    others = random.randint(0 if repeated > 1 else 1, min(2, 5 - repeated) if repeated < 5 else 0)
    shape, *other_shapes = random.sample(SHAPES, 1 + others)
    shapes = [shape] * repeated + other_shapes
    random.shuffle(shapes)
    cells = sorted(random.sample(range(9), len(shapes)))
    return [
        Thing(shape, random.choice(COLORS), cell) for shape, cell in zip(shapes, cells, strict=True)
    ]
