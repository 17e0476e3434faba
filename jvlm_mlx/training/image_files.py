"""Where a row's image is, and how large, without decoding it."""

from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import DataError, ImageError
from ..processing.image_decoding import identify, reason
from ..processing.image_io import open_image, source_name
from ..processing.orientation import orientation

_SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""
_ADDRESSES = ("data:", "file:")
_WEB = ("http:", "https:")


def locate(source: Any, folder: Path) -> str:
    """Return the path, or the `data:` or `file:` address, of an image.

    Args:
        source: what the row says.
        folder: that relative paths start from.

    Raises:
        DataError: it is neither, or on the web.
    """
    if not isinstance(source, str):
        raise DataError(f"an image is of type {type(source).__name__}; expected a path")
    beginning = source[:8].lower()
    if beginning.startswith(_WEB):
        raise DataError(f"image {source_name(source)} is on the web; download it and give its path")
    if beginning.startswith(_ADDRESSES):
        return source
    try:
        return str(folder / Path(source).expanduser())
    except RuntimeError as error:
        raise DataError(f"image {source_name(source)} cannot be found: {error}") from None


def image_size(source: str) -> tuple[int, int]:
    """Return width and height of an image as it stands upright.

    Only the beginning of a file is read, unless it is TIFF. An image in an address is decoded.

    Raises:
        ImageError: there is no such image, or it cannot be one.
    """
    if source[:8].lower().startswith(_ADDRESSES):
        return decoded_size(source)
    name = source_name(source)
    try:
        with Path(source).open("rb") as stream:
            image = identify(stream)
            if image is None:
                raise ImageError(f"{name} is no image of a format that Pillow reads")
            width, height = image.size
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and width * height > limit:
                raise ImageError(
                    f"{name} is too large: {width} x {height} pixels; at most {limit} are decoded"
                )
            if image.format == "TIFF":
                return decoded_size(source)  # Pillow turns these itself, while it decodes.
            sideways = orientation(image) in _SIDEWAYS
    except ImageError:
        raise
    except Exception as error:  # Decoders raise whatever a damaged file makes them trip over.
        raise ImageError(f"{name} cannot be opened: {reason(error)}") from error
    return (height, width) if sideways else (width, height)


def decoded_size(source: str) -> tuple[int, int]:
    """Return width and height of an image by decoding all of it.

    Raises:
        ImageError: it cannot be decoded.
    """
    return open_image(source).size
