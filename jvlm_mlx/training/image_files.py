"""Where a row's image is, and how large, without decoding it."""

from pathlib import Path
from typing import Any

from ..errors import DataError
from ..processing.image_io import open_image, read_image
from ..processing.sources import source_name

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

    Only the header of a file is read.

    Raises:
        ImageError: there is no such image, or it cannot be one.
    """
    return read_image(source).size


def decoded_size(source: str) -> tuple[int, int]:
    """Return width and height of an image by decoding all of it.

    Raises:
        ImageError: it cannot be decoded.
    """
    return open_image(source).size
