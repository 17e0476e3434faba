"""Opens whatever a user calls an image."""

import base64
import contextlib
import io
import os
import stat
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import ImageError
from .download import SCHEMES, download
from .image_decoding import decode, image_size, reason
from .rgb import to_rgb

MAX_CHARACTERS = 100
"""Longest source that a message quotes in full."""


class Array(Protocol):
    """An array of numpy, MLX or any library whose arrays numpy takes."""

    def __array__(self) -> NDArray[Any]:
        """Return it as a numpy array."""
        ...


ImageSource: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image | Array
)


@dataclass(frozen=True, kw_only=True)
class SourceLimits:
    """What opening an image may take, for images of strangers."""

    max_pixels: int | None = None
    """Most pixels; None: `PIL.Image.MAX_IMAGE_PIXELS`."""
    max_bytes: int = 128 * 2**20
    """Largest image file that is downloaded, or read from a pipe or a file object."""
    timeout: float = 30.0
    """Seconds for the whole of a download."""
    private_addresses: bool = True
    """Whether images may be downloaded from hosts whose addresses are not public."""


DEFAULT_LIMITS = SourceLimits()


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
            a path (`~` is the home folder), or a `file:`, `http:`, `https:` or `data:` URL;
            the bytes of an image file, or a binary file open for reading;
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
    if isinstance(source, Image.Image):
        return ImageData(name, source.size, lambda: _from_pillow(source), is_borrowed=True)
    if isinstance(source, str):
        scheme = _scheme(source)
        if scheme in SCHEMES:
            return _from_web(source, name, limits, cancel)
        if scheme == "data":
            return _from_bytes(_from_data_url(source, name), name, limits)
        if scheme == "file":
            return _from_file(_from_file_url(source, name), name, limits)
        return _from_file(source, name, limits)
    if isinstance(source, os.PathLike):
        return _from_file(source, name, limits)
    if isinstance(source, bytes | bytearray | memoryview):
        return _from_bytes(bytes(source), name, limits)
    if hasattr(source, "read"):
        return _from_bytes(_from_stream(source, name, limits), name, limits)
    if hasattr(source, "__array__"):
        image = _from_array(source)
        return ImageData(name, image.size, lambda: image, is_borrowed=True)
    raise ImageError(
        f"{name} is no image; expected a path, a URL, bytes, a binary file, a Pillow image"
        " or an array"
    )


def is_address(source: str) -> bool:
    """Return whether a text is an address that `open_image` takes, and no path."""
    return _scheme(source) in ("http", "https", "data", "file")


def _scheme(source: str) -> str:
    scheme, colon, _ = source.partition(":")
    return scheme.lower() if colon else ""


def source_name(source: object) -> str:
    """Return what messages call the source."""
    if isinstance(source, str):
        if len(source) > MAX_CHARACTERS:
            return f"{source[:MAX_CHARACTERS]!r}… ({len(source)} characters)"
        return repr(source)
    if isinstance(source, os.PathLike):
        return repr(os.fsdecode(source))
    if isinstance(source, bytes | bytearray | memoryview):
        return f"the image given as {memoryview(source).nbytes} bytes"
    if hasattr(source, "read"):
        path = getattr(source, "name", None)
        return repr(path) if isinstance(path, str) else "the image given as a file object"
    return f"a {type(source).__name__}"


def _from_pillow(image: Image.Image) -> Image.Image:
    try:
        image.load()
        return to_rgb(image, "the Pillow image")
    except Exception as error:  # Decoders raise whatever a damaged file makes them trip over.
        raise ImageError(f"the Pillow image cannot be decoded: {reason(error)}") from error


def _from_bytes(data: bytes, name: str, limits: SourceLimits) -> ImageData:
    return ImageData(
        name,
        image_size(io.BytesIO(data), name, limits.max_pixels),
        lambda: decode(io.BytesIO(data), name, limits.max_pixels),
    )


def _from_web(
    url: str, name: str, limits: SourceLimits, cancel: threading.Event | None
) -> ImageData:
    data, content_type = download(
        url,
        name,
        timeout=limits.timeout,
        max_bytes=limits.max_bytes,
        private_addresses=limits.private_addresses,
        cancel=cancel,
    )
    try:
        return _from_bytes(data, name, limits)
    except ImageError as error:
        if content_type.startswith("image/"):
            raise
        raise ImageError(f"{error} (its server calls it {content_type[:80]})") from None


def _from_file(path: str | os.PathLike[str], name: str, limits: SourceLimits) -> ImageData:
    def read(function: Callable[[IO[bytes]], Any]) -> Any:
        try:
            with Path(path).expanduser().open("rb") as stream:
                return function(stream)
        except (OSError, ValueError, RuntimeError) as error:
            raise ImageError(f"{name} cannot be opened: {reason(error)}") from error

    def look(stream: IO[bytes]) -> ImageData:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):  # a pipe, or a device
            return _from_bytes(_from_stream(stream, name, limits), name, limits)
        return ImageData(
            name,
            image_size(stream, name, limits.max_pixels),
            lambda: read(lambda stream: decode(stream, name, limits.max_pixels)),
        )

    data: ImageData = read(look)
    return data


def _from_file_url(address: str, name: str) -> str:
    parts = urllib.parse.urlsplit(address)
    if parts.netloc not in ("", "localhost"):
        raise ImageError(f"{name} is on another computer; expected file:///path")
    return urllib.request.url2pathname(parts.path)


def _from_data_url(address: str, name: str) -> bytes:
    header, comma, text = address.partition(",")
    if not comma:
        raise ImageError(f"{name} is no data address: there is no comma in it")
    data = urllib.parse.unquote_to_bytes(text)
    if not header.lower().endswith(";base64"):
        return data
    try:
        return base64.b64decode(b"".join(data.split()), validate=True)
    except ValueError as error:
        raise ImageError(f"{name} is no valid base64: {reason(error)}") from error


def _from_stream(stream: Any, name: str, limits: SourceLimits) -> bytes:
    try:
        if hasattr(stream, "seek"):
            with contextlib.suppress(OSError):  # a pipe
                stream.seek(0)
        data = stream.read(limits.max_bytes + 1)
    except (OSError, ValueError, TypeError) as error:
        raise ImageError(f"{name} cannot be read: {reason(error)}") from error
    if not isinstance(data, bytes):
        raise ImageError(f"{name} is open as text; open it in binary mode")
    if len(data) > limits.max_bytes:
        raise ImageError(f"{name} is larger than {limits.max_bytes / 2**20:g} MiB")
    return data


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
