"""Any image of Pillow's in RGB, so that nothing that can be seen gets lost.

Ordinary images are converted as the reference implementation does it: alpha is dropped, gray and
palettes are expanded. It also clips gray values of more than 8 bits, which turns 16-bit scans
white and float images black, and shows ink on a transparent ground as one color. These are
scaled, and laid on white, here.
"""

import logging
from collections.abc import Iterator

import numpy as np
from PIL import Image

logger = logging.getLogger(__name__)

_WHITE_LEVELS = (255, 4095, 65535)
"""Highest values of 8, 12 and 16 bits, which gray values of more than 8 bits are stored for."""
_BAND = 512
"""Rows that are converted at a time."""


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Return a loaded image in RGB; no copy if it is RGB already. `name` is for notices."""
    if image.mode == "RGB":
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _scaled(image)
    elif image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        flattened = _flattened(image, name)
        if flattened is not None:
            return flattened
    if "transparency" in image.info:
        # Without effect on the colors, but Pillow warns about some kinds of it.
        image = image.copy()
        del image.info["transparency"]
    return image.convert("RGB")


def _flattened(image: Image.Image, name: str) -> Image.Image | None:
    """Lay an image on white if only its alpha channel shows anything; None: it is not needed.

    Light ink is laid on black.
    """
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    *colors, (faintest, densest) = (rgba.getchannel(band).getextrema() for band in "RGBA")
    if faintest == densest or any(low != high for low, high in colors):
        return None
    light = np.mean([low for low, _ in colors]) >= 128
    logger.warning(
        "%s has one color and transparency; it is laid on %s", name, "black" if light else "white"
    )
    ground = Image.new("RGBA", image.size, "black" if light else "white")
    return Image.alpha_composite(ground, rgba).convert("RGB")


def _scaled(image: Image.Image) -> Image.Image:
    """Bring gray values of more than 8 bits, or floats, to 8 bits.

    Floats up to 1 are fractions of white. Other values are taken for 8, 12 or 16 bits, whichever
    holds the highest of them; where none does, or where some are negative, the lowest becomes
    black and the highest white. What is no number becomes black.
    """
    lows, highs = zip(*((band.min(), band.max()) for band in _bands(image)), strict=True)
    black, white = float(min(lows)), float(max(highs))
    if black >= 0 and white <= _WHITE_LEVELS[-1]:
        black = 0.0
        if white <= 1 and image.mode == "F":
            white = 1.0
        else:
            white = float(next(level for level in _WHITE_LEVELS if white <= level))
    scaled = np.empty((image.height, image.width), np.uint8)
    top = 0
    for band in _bands(image):
        values = (band.astype(np.float64) - black) * (255 / ((white - black) or 1.0))
        scaled[top : top + len(band)] = np.rint(values.clip(0, 255))
        top += len(band)
    return Image.fromarray(scaled)


def _bands(image: Image.Image) -> Iterator[np.ndarray]:
    """Yield the values of some rows at a time, all of them finite."""
    for top in range(0, image.height, _BAND):
        band = np.asarray(image.crop((0, top, image.width, min(top + _BAND, image.height))))
        yield np.nan_to_num(band, posinf=0, neginf=0) if band.dtype.kind == "f" else band
