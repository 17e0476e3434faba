"""Bar charts of two tiles side by side."""

from random import Random

from PIL import Image, ImageDraw

from .drawing import PRINT_INKS, SMALL_PRINT, draw_text, new_image
from .example import Turn
from .phrases import COLORS, PHRASES
from .scenes import jittered

TASKS = ("bar_value", "bar_largest")

LETTERS = "ABCD"
WIDTH, HEIGHT = 128, 72
BASELINE = 59
"""Row of the axis; bars stand on it."""
UNIT = 6
"""Height of a value of one in pixels."""
FIRST_BAR, BAR_DISTANCE, BAR_WIDTH = 20, 28, 16
_LARGEST_VALUE = 9
_GRID_VALUES = (3, 6, 9)
_GRID_INK = (200, 200, 200)


def make_chart(language: str, random: Random) -> tuple[Image.Image, list[Turn], str]:
    """Return an image, its questions and its caption. One bar is the largest."""
    phrases = PHRASES[language]
    values = random_values(random)
    letters = LETTERS[: len(values)]
    turns = [
        Turn(phrases.bar_value.format(letter), str(value), "bar_value")
        for letter, value in zip(letters, values, strict=True)
    ]
    largest = letters[values.index(max(values))]
    turns.append(Turn(phrases.bar_largest, largest, "bar_largest"))
    bars = ", ".join(f"{letter} {value}" for letter, value in zip(letters, values, strict=True))
    return draw_chart(values, random), turns, phrases.bars_in_caption.format(bars)


def random_values(random: Random) -> list[int]:
    """Return the values of three or four bars, the largest of them once."""
    largest = random.randint(3, _LARGEST_VALUE)
    values = [random.randint(1, largest - 1) for _ in range(random.randint(2, 3))]
    values.insert(random.randint(0, len(values)), largest)
    return values


def draw_chart(values: list[int], random: Random) -> Image.Image:
    """Return a chart with grid lines, letters and the axis in small print."""
    image = new_image(random, WIDTH, HEIGHT)
    draw = ImageDraw.Draw(image)
    ink = random.choice(PRINT_INKS)
    for value in _GRID_VALUES:
        height = BASELINE - value * UNIT
        draw.line((14, height, WIDTH - 4, height), fill=_GRID_INK)
        draw_text(image, str(value), ink, 4, height + 5, SMALL_PRINT)
    draw.line((14, BASELINE, WIDTH - 4, BASELINE), fill=ink)
    colors = random.sample(COLORS, len(values))
    for place, (value, color) in enumerate(zip(values, colors, strict=True)):
        left = FIRST_BAR + place * BAR_DISTANCE
        draw.rectangle(
            (left, BASELINE - value * UNIT, left + BAR_WIDTH - 1, BASELINE - 1),
            fill=jittered(color, random),
        )
        draw_text(image, LETTERS[place], ink, left + 4, HEIGHT - 2, SMALL_PRINT)
    return image
