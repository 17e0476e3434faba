"""Paper, shapes and letters of the demo's images."""

from functools import cache
from random import Random

from PIL import Image, ImageDraw, ImageFont

Ink = tuple[int, int, int]

COLOR_INKS: dict[str, Ink] = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (40, 80, 220),
    "yellow": (245, 205, 30),
    "black": (20, 20, 20),
    "purple": (150, 50, 190),
}
PRINT_INKS: tuple[Ink, ...] = ((20, 20, 20), (20, 40, 120))
_PAPERS: tuple[Ink, ...] = ((255, 255, 255), (242, 242, 242))

_OVERSAMPLING = 4
_LETTER_GAP = 1
LARGE_PRINT = (18, 20)
"""Font sizes with capitals of 13 and 14 pixels."""
SMALL_PRINT = 12
"""Font size with capitals of 9 pixels: gone in a thumbnail of two tiles in a row."""

# Corners in a square of side 1.
_TRIANGLE = ((0.5, 0.0), (1.0, 1.0), (0.0, 1.0))
_CROSS = (
    (1 / 3, 0.0), (2 / 3, 0.0), (2 / 3, 1 / 3), (1.0, 1 / 3), (1.0, 2 / 3), (2 / 3, 2 / 3),
    (2 / 3, 1.0), (1 / 3, 1.0), (1 / 3, 2 / 3), (0.0, 2 / 3), (0.0, 1 / 3), (1 / 3, 1 / 3),
)  # fmt: skip
_STAR = (
    (0.5, 0.0), (0.62, 0.36), (1.0, 0.38), (0.7, 0.62), (0.81, 1.0),
    (0.5, 0.78), (0.19, 1.0), (0.3, 0.62), (0.0, 0.38), (0.38, 0.36),
)  # fmt: skip
_POLYGONS = {"triangle": _TRIANGLE, "cross": _CROSS, "star": _STAR}


def new_image(random: Random, width: int, height: int) -> Image.Image:
    """Return an empty image on one of the papers."""
    return Image.new("RGB", (width, height), random.choice(_PAPERS))


def draw_shape(image: Image.Image, shape: str, ink: Ink, left: int, top: int, size: int) -> None:
    """Fill a shape into a square of `size` pixels."""
    image.paste(ink, (left, top), _shape_mask(shape, size))


def draw_text(
    image: Image.Image, text: str, ink: Ink, left: int, baseline: int, font_size: int
) -> None:
    """Print text, letter by letter at whole pixels."""
    for letter in text:
        mask, offset, top, advance = _glyph(letter, font_size)
        image.paste(ink, (left + offset, baseline + top), mask)
        left += advance


def text_width(text: str, font_size: int) -> int:
    """Return the width of a printed text in pixels."""
    return sum(_glyph(letter, font_size)[3] for letter in text) - _LETTER_GAP


def random_print(random: Random, text: str, width: int) -> tuple[int, int]:
    """Return a size of large print in which a text fits into a width, and a left edge for it."""
    size = random.choice([size for size in LARGE_PRINT if text_width(text, size) <= width - 4])
    return size, random.randint(2, width - 2 - text_width(text, size))


@cache
def _shape_mask(shape: str, size: int) -> Image.Image:
    side = size * _OVERSAMPLING
    mask = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(mask)
    if shape == "circle":
        draw.ellipse((0, 0, side - 1, side - 1), fill=255)
    elif shape == "square":
        # As wide as the others look: a full square would be the biggest of all.
        margin = side // 12
        draw.rectangle((margin, margin, side - 1 - margin, side - 1 - margin), fill=255)
    else:
        draw.polygon([(x * (side - 1), y * (side - 1)) for x, y in _POLYGONS[shape]], fill=255)
    return mask.reduce(_OVERSAMPLING)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


@cache
def _glyph(letter: str, font_size: int) -> tuple[Image.Image, int, int, int]:
    """Return mask, its offset from the pen, its top above the baseline, and the advance."""
    font = _font(font_size)
    left, top, right, bottom = (int(side) for side in font.getbbox(letter, anchor="ls"))
    mask = Image.new("L", (right - left, bottom - top), 0)
    ImageDraw.Draw(mask).text((-left, -top), letter, fill=255, font=font, anchor="ls")
    return mask, left, top, right + _LETTER_GAP
