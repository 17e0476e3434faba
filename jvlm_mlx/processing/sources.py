"""What a user may call an image: its name for messages, and its bytes."""

import base64
import contextlib
import os
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from ..errors import ImageError, JvlmError
from ..files import reason
from .download import SCHEMES, download

T = TypeVar("T")

MAX_CHARACTERS = 100
"""Longest source that a message quotes in full."""


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
class Page:
    """One page of a PDF, or one frame of an image file."""

    file: str | bytes
    """Its path, or its contents."""
    number: int
    """Counted from 1."""
    name: str
    """What messages call it."""
    drawn_size: tuple[int, int] | None
    """Width and height in pixels that a PDF's page is drawn with; None of a frame."""


def is_url(source: str) -> bool:
    """Return whether a text is a URL that is opened, and no path."""
    return scheme_of(source) in (*SCHEMES, "data", "file")


def scheme_of(source: str) -> str:
    """Return what is in front of the colon of a URL, in lower case."""
    scheme, colon, _ = source.partition(":")
    return scheme.lower() if colon else ""


def locate(source: str, folder: Path, error_type: type[JvlmError]) -> str:
    """Return an image's path, which starts from `folder` unless it is absolute or with `~`.

    Raises:
        JvlmError: of this type; it is in the home folder of a user who does not exist.
    """
    try:
        return str(folder / Path(source).expanduser())
    except RuntimeError as error:
        message = f"image {source_name(source)} cannot be found: {error}"
        raise error_type(message) from None


def source_name(source: object) -> str:
    """Return what messages call the source."""
    if isinstance(source, str):
        if len(source) > MAX_CHARACTERS:
            return f"{source[:MAX_CHARACTERS]!r}… ({len(source)} characters)"
        return repr(source)
    if isinstance(source, os.PathLike):
        return repr(os.fsdecode(source))
    if isinstance(source, Page):
        return source.name
    if isinstance(source, bytes | bytearray | memoryview):
        return f"the image given as {memoryview(source).nbytes} bytes"
    if hasattr(source, "read"):
        path = getattr(source, "name", None)
        return repr(path) if isinstance(path, str) else "the image given as a file object"
    return f"a {type(source).__name__}"


def path_of_file_url(address: str, name: str) -> str:
    """Return the path in a `file:` URL."""
    parts = urllib.parse.urlsplit(address)
    if parts.netloc not in ("", "localhost"):
        raise ImageError(f"{name} is on another computer; expected file:///path")
    return urllib.request.url2pathname(parts.path)


def data_of_url(address: str, name: str) -> bytes:
    """Return the contents of a `data:` URL."""
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


def read_stream(stream: Any, name: str, limits: SourceLimits) -> bytes:
    """Return the contents of a binary file object, from its start if it has one."""
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


def fetch(
    url: str, name: str, limits: SourceLimits, cancel: threading.Event | None
) -> tuple[bytes, str]:
    """Download a URL; return its contents and what its server calls them."""
    return download(
        url,
        name,
        timeout=limits.timeout,
        max_bytes=limits.max_bytes,
        private_addresses=limits.private_addresses,
        cancel=cancel,
    )


def with_file(path: str | os.PathLike[str], name: str, function: Callable[[IO[bytes]], T]) -> T:
    """Return what a function makes of an opened file."""
    try:
        with Path(path).expanduser().open("rb") as stream:
            return function(stream)
    except (OSError, ValueError, RuntimeError) as error:
        raise ImageError(f"{name} cannot be opened: {reason(error)}") from error
