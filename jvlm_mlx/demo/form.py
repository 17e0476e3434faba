"""Forms in small print: name, city and number, in any order."""

from random import Random

from PIL import Image, ImageDraw

from .drawing import PRINT_INKS, SMALL_PRINT, draw_shape, draw_text, new_image
from .example import Turn
from .phrases import CITIES, COLORS, FIELDS, NAMES, PHRASES, SHAPES, random_number
from .scenes import jittered

TASKS = ("form",)

_LABELS = {"name": "NAME", "city": "CITY", "number": "NO"}
_WIDTH, _HEIGHT = 128, 128
_STRIDE = 56
"""Distance of tiles; a wide form is one tile wider, with a shape on the left."""
_RULE_INK = (200, 200, 200)


def make_form(language: str, random: Random) -> tuple[Image.Image, list[Turn], str]:
    """Return an image of two or three by two tiles, its questions and its caption."""
    phrases = PHRASES[language]
    values = {
        "name": random.choice(NAMES),
        "city": random.choice(CITIES),
        "number": random_number(random, 3),
    }
    turns = [Turn(phrases.form[field], values[field], "form") for field in FIELDS]
    caption = ", ".join(phrases.form_in_caption[field].format(values[field]) for field in FIELDS)
    return _draw_form(values, random), turns, caption


def _draw_form(values: dict[str, str], random: Random) -> Image.Image:
    shift = _STRIDE if random.random() < 0.15 else 0
    image = new_image(random, _WIDTH + shift, _HEIGHT)
    draw = ImageDraw.Draw(image)
    ink = random.choice(PRINT_INKS)
    if shift:
        place = random.randint(4, 12), random.randint(8, 80)
        color = jittered(random.choice(COLORS), random)
        draw_shape(image, random.choice(SHAPES), color, *place, 36)
    fields = random.sample(FIELDS, len(FIELDS))
    first, distance = random.randrange(24, 36, 2), random.randrange(30, 38, 2)
    label_left, value_left = shift + random.randrange(4, 10, 2), shift + random.randrange(60, 70, 2)
    for row, field in enumerate(fields):
        baseline = first + row * distance
        draw_text(image, _LABELS[field], ink, label_left, baseline, SMALL_PRINT)
        draw_text(image, values[field], ink, value_left, baseline, SMALL_PRINT)
        draw.line((label_left, baseline + 4, shift + 122, baseline + 4), fill=_RULE_INK)
    return image
