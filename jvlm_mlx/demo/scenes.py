"""Scenes of coloured shapes: colour, shape, count, position."""

from random import Random
from typing import NamedTuple

from PIL import Image

from .drawing import COLOUR_INKS, Ink, draw_shape, new_picture
from .example import Turn
from .phrases import COLOURS, PHRASES, SHAPES

TASKS = ("colour", "shape", "count", "position")

_SIDE = 72
_CELL = 24
_JITTER = 2
_INK_JITTER = 10


class Thing(NamedTuple):
    """A shape in one of nine cells, numbered row by row."""

    shape: str
    colour: str
    cell: int


def make_scene(task: str, random: Random) -> tuple[Image.Image, list[Thing]]:
    """Return a picture of one tile and what is on it, row by row.

    A scene made for counting has one shape several times, any other scene has all its shapes
    and colours once.
    """
    things = _countable_things(random) if task == "count" else _different_things(random)
    picture = new_picture(random, _SIDE, _SIDE)
    for thing in things:
        size = random.randint(17, 19)
        row, column = divmod(thing.cell, 3)
        left, top = (
            place * _CELL + (_CELL - size) // 2 + random.randint(-_JITTER, _JITTER)
            for place in (column, row)
        )
        draw_shape(picture, thing.shape, jittered(thing.colour, random), left, top, size)
    return picture, things


def jittered(colour: str, random: Random) -> Ink:
    """Return the ink of a colour, a little lighter or darker."""
    red, green, blue = (
        min(255, max(0, value + random.randint(-_INK_JITTER, _INK_JITTER)))
        for value in COLOUR_INKS[colour]
    )
    return red, green, blue


def thing_turns(things: list[Thing], language: str) -> list[Turn]:
    """Return all questions for colour, shape and position with one right answer."""
    phrases = PHRASES[language]
    shapes = [thing.shape for thing in things]
    colours = [thing.colour for thing in things]
    turns = []
    for thing in things:
        noun, colour = phrases.shapes[thing.shape], phrases.colours[thing.colour]
        if shapes.count(thing.shape) == 1:
            question = phrases.colour.format(noun.definite)
            turns.append(Turn(question, colour.of_noun[noun.gender], "colour"))
            question = phrases.position.format(noun.definite)
            turns.append(Turn(question, phrases.places[thing.cell], "position"))
        if colours.count(thing.colour) == 1:
            turns.append(Turn(phrases.shape.format(colour.of_shape), noun.name, "shape"))
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
        name_shape(thing.shape, thing.colour, places[thing.cell], language) for thing in things
    )


def name_shape(shape: str, colour: str, place: str, language: str) -> str:
    """Return "red circle top left", or "red circle" if the place is empty."""
    phrases = PHRASES[language]
    noun = phrases.shapes[shape]
    words = phrases.colours[colour].at_noun[noun.gender]
    return phrases.object_in_caption.format(colour=words, shape=noun.name, place=place).strip()


def _different_things(random: Random) -> list[Thing]:
    count = random.randint(2, 4)
    cells = sorted(random.sample(range(9), count))
    return [
        Thing(shape, colour, cell)
        for shape, colour, cell in zip(
            random.sample(SHAPES, count), random.sample(COLOURS, count), cells, strict=True
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
        Thing(shape, random.choice(COLOURS), cell)
        for shape, cell in zip(shapes, cells, strict=True)
    ]
