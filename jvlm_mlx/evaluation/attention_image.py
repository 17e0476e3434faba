"""Draws an explanation: the photo with its tiles, the pooling weights, and each answer token."""

import math

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from .attention_maps import Explanation

_Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

_PANEL = 360
"""Longest side of a panel, in pixels."""
_MARGIN, _CAPTION = 12, 26
_MAX_PANELS = 24
_TILE_INKS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080")
_HEAT = np.array(
    [(0, 0, 0, 0), (59, 76, 192, 110), (221, 221, 80, 170), (180, 4, 38, 220)], np.float64
)
"""Colors and opacity from nothing to the most."""


def overlay(image: Image.Image, heat: npt.NDArray[np.float32]) -> Image.Image:
    """Return an image under a map of the same size: clear where it is 0, red where it is most."""
    most = float(heat.max())
    place = (heat / most if most > 0 else heat).clip(0, 1) * (len(_HEAT) - 1)
    below = np.floor(place).astype(int).clip(0, len(_HEAT) - 2)
    part = (place - below)[..., None]
    colors = _HEAT[below] * (1 - part) + _HEAT[below + 1] * part  # (height, width, 4)
    opacity = colors[..., 3:] / 255
    pixels = np.asarray(image, np.float64) * (1 - opacity) + colors[..., :3] * opacity
    return Image.fromarray(pixels.round().astype(np.uint8))


def with_tiles(explanation: Explanation) -> Image.Image:
    """Return the image with the borders of its tiles, each in a color of its own."""
    drawn = explanation.image.copy()
    draw = ImageDraw.Draw(drawn)
    width = max(1, round(max(drawn.size) / 300))
    for number, box in enumerate(explanation.tile_boxes[1:]):
        left, top, right, bottom = (round(float(edge)) for edge in box)
        ink = _TILE_INKS[number % len(_TILE_INKS)]
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), None, ink, width)
    return drawn


def draw_explanation(explanation: Explanation) -> Image.Image:
    """Return one image of everything: tiles, pooling weights, all tokens, then each token."""
    image = explanation.image
    grid = len(explanation.tile_boxes) - 1
    panels = [
        (f"{grid} tiles and the thumbnail", with_tiles(explanation)),
        ("pooling: patches above the mean", overlay(image, _excess(explanation.pooling_map()))),
        (f"answer: {explanation.text.strip()}", overlay(image, explanation.attention_map())),
    ]
    shown = explanation.tokens[: _MAX_PANELS - len(panels)]
    for number, token in enumerate(shown):
        weight = float(explanation.attention[number].mean(0).sum())
        caption = f"{token.strip() or repr(token)}   ({weight:.0%} on the image)"
        panels.append((caption, overlay(image, explanation.attention_map(number))))
    scale = _PANEL / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    columns = min(len(panels), 4)
    rows = math.ceil(len(panels) / columns)
    sheet = Image.new(
        "RGB",
        (columns * (width + _MARGIN) + _MARGIN, rows * (height + _CAPTION + _MARGIN) + _MARGIN),
        "white",
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for place, (caption, panel) in enumerate(panels):
        row, column = divmod(place, columns)
        left = _MARGIN + column * (width + _MARGIN)
        top = _MARGIN + row * (height + _CAPTION + _MARGIN)
        draw.text((left, top), _fitting(caption, width, draw, font), "black", font)
        sheet.paste(panel.resize((width, height)), (left, top + _CAPTION))
    return sheet


def _excess(pooling: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.maximum(pooling - 1, 0)


def _fitting(
    text: str,
    width: int,
    draw: ImageDraw.ImageDraw,
    font: _Font,
) -> str:
    while text and draw.textlength(text, font) > width:
        text = text[:-2] + "…" if len(text) > 2 else ""
    return text
