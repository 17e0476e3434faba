"""Opens whatever a user calls an image."""

import io
import os
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import ImageError
from ..files import reason
from .documents import expand, may_have_pages
from .download import SCHEMES
from .image_decoding import decode, decoding, image_size
from .pdf import draw_page
from .rgb import to_rgb
from .sources import (
    DEFAULT_LIMITS,
    Page,
    SourceLimits,
    data_of_url,
    fetch,
    path_of_file_url,
    read_stream,
    scheme_of,
    source_name,
    with_file,
)

MAX_READ = 64_000_000
"""Largest file, in bytes, that is read as a whole; larger ones are decoded as they are read."""


class Array(Protocol):
    """An array of numpy, MLX or any library whose arrays numpy takes."""

    def __array__(self) -> NDArray[Any]:
        """Return it as a numpy array."""
        ...


ImageSource: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image | Array | Page
)


@dataclass(frozen=True, eq=False)
class ImageData:
    """An image of which only the size has been read."""

    name: str
    """What messages call it."""
    size: tuple[int, int]
    """Width and height in pixels, upright."""
    decode: Callable[[], Image.Image]
    """Returns the image upright and in RGB, or raises an ImageError."""
    is_borrowed: bool = False
    """Whether its pixels belong to the caller, who may change them later."""
    file: "ImageFile | None" = None
    """What it is decoded from, if that is a file of moderate size."""


@dataclass(frozen=True, eq=False)
class ImageFile:
    """The file of an image, in memory or to be read."""

    frame: int
    """Which of its images is meant, from 1."""
    read: Callable[[], bytes]
    """Returns its contents, or raises an ImageError."""
    decode: Callable[[bytes], Image.Image]
    """Returns the image in these contents, as `ImageData.decode`."""


def open_image(source: ImageSource, limits: SourceLimits = DEFAULT_LIMITS) -> Image.Image:
    """Return an image upright and in RGB; sources and errors as `read_image`."""
    return read_image(source, limits).decode()


def read_image(
    source: ImageSource,
    limits: SourceLimits = DEFAULT_LIMITS,
    cancel: threading.Event | None = None,
) -> ImageData:
    """Read the size of an image, to be decoded when it is needed.

    Args:
        source: one of
            a path (`~` is the home folder), or a `file:`, `http:`, `https:` or `data:` URL,
            with `#3` behind it for the third page of a PDF or the third frame of an image;
            the bytes of an image file, or a binary file open for reading;
            a page or frame, from `expand`;
            a Pillow image;
            an array of 8-bit numbers: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).

            Files are turned upright as their metadata says; Pillow images and arrays are taken
            as they are. Of several frames the first is used. An alpha channel is dropped, unless
            nothing else shows anything.
        limits: of size and time.
        cancel: ends a download when it is set.

    Raises:
        ImageError: there is no such image, it is of no format that is opened, or too large.
        RequestError: `cancel` is set.
    """
    name = source_name(source)
    if isinstance(source, Page):
        return _from_page(source, limits, cancel)
    if may_have_pages(source):
        pages = expand(source, limits, cancel)
        if len(pages) != 1:
            raise ImageError(f"{name} has {len(pages)} pages; name one of them: FILE#1")
        if pages[0] is not source:
            return read_image(pages[0], limits, cancel)
    if isinstance(source, Image.Image):
        return ImageData(name, source.size, lambda: _from_pillow(source), is_borrowed=True)
    if isinstance(source, str):
        scheme = scheme_of(source)
        if scheme in SCHEMES:
            return _from_web(source, name, limits, cancel)
        if scheme == "data":
            return _from_bytes(data_of_url(source, name), name, limits)
        if scheme == "file":
            return _from_file(path_of_file_url(source, name), name, limits)
        return _from_file(source, name, limits)
    if isinstance(source, os.PathLike):
        return _from_file(source, name, limits)
    if isinstance(source, bytes | bytearray | memoryview):
        return _from_bytes(bytes(source), name, limits)
    if hasattr(source, "read"):
        return _from_bytes(read_stream(source, name, limits), name, limits)
    if hasattr(source, "__array__"):
        image = _from_array(source)
        return ImageData(name, image.size, lambda: image, is_borrowed=True)
    raise ImageError(
        f"{name} is no image; expected a path, a URL, bytes, a binary file, a Pillow image"
        " or an array"
    )


def _from_page(page: Page, limits: SourceLimits, cancel: threading.Event | None) -> ImageData:
    if page.drawn_size is not None:
        return ImageData(page.name, page.drawn_size, lambda: draw_page(page, cancel))
    if isinstance(page.file, bytes):
        return _from_bytes(page.file, page.name, limits, page.number)
    return _from_file(page.file, page.name, limits, page.number)


def _from_pillow(image: Image.Image) -> Image.Image:
    name = "the Pillow image"
    with decoding(name):
        image.load()
        return to_rgb(image, name)


def _from_bytes(data: bytes, name: str, limits: SourceLimits, frame: int = 1) -> ImageData:
    def decode_contents(contents: bytes) -> Image.Image:
        return decode(io.BytesIO(contents), name, limits.max_pixels, frame)

    return ImageData(
        name,
        image_size(io.BytesIO(data), name, limits.max_pixels, frame),
        lambda: decode_contents(data),
        file=ImageFile(frame, lambda: data, decode_contents),
    )


def _from_web(
    url: str, name: str, limits: SourceLimits, cancel: threading.Event | None
) -> ImageData:
    data, content_type = fetch(url, name, limits, cancel)
    try:
        return _from_bytes(data, name, limits)
    except ImageError as error:
        if content_type.startswith("image/"):
            raise
        raise ImageError(f"{error} (its server calls it {content_type[:80]})") from None


def _from_file(
    path: str | os.PathLike[str], name: str, limits: SourceLimits, frame: int = 1
) -> ImageData:
    def look(stream: IO[bytes]) -> ImageData:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):  # a pipe, or a device
            return _from_bytes(read_stream(stream, name, limits), name, limits)
        return ImageData(
            name,
            image_size(stream, name, limits.max_pixels, frame),
            lambda: with_file(path, name, decode_stream),
            file=None if status.st_size > MAX_READ else ImageFile(
                frame, lambda: with_file(path, name, _contents),
                lambda contents: decode_stream(io.BytesIO(contents)),
            ),
        )  # fmt: skip

    def decode_stream(stream: IO[bytes]) -> Image.Image:
        return decode(stream, name, limits.max_pixels, frame)

    return with_file(path, name, look)


def _contents(stream: IO[bytes]) -> bytes:
    return stream.read()


def _from_array(source: Any) -> Image.Image:
    try:
        array = np.asarray(source)
    except Exception as error:  # Each library has its own for what numpy cannot take.
        raise ImageError(f"the array cannot be read by numpy: {reason(error)}") from error
    if array.dtype != np.uint8:
        raise ImageError(
            f"the array has numbers of type {array.dtype}; expected 8-bit numbers, 0 to 255 (uint8)"
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise ImageError(
            f"the array has shape {array.shape}; expected height x width, alone or with 1, 3 or 4"
            " channels last"
        )
    if array.size == 0:
        raise ImageError(f"the array is empty: shape {array.shape}")
    return to_rgb(Image.fromarray(array), "the array")
