"""Images of examples: their sizes before training, and their tiles while it runs."""

import threading
from pathlib import Path
from typing import Any

from ..config.image_config import ImageOptions
from ..errors import DataError, ImageError
from ..processing.image_io import read_image
from ..processing.image_processor import ProcessedImage
from ..processing.processor import Processor
from ..processing.sources import locate, source_name
from ..processing.tiling import ImageLayout

_URLS = ("data:", "file:")
_WEB = ("http:", "https:")


def image_address(source: Any, folder: Path) -> str:
    """Return the path, or the `data:` or `file:` URL, of an image; paths start from `folder`.

    Raises:
        DataError: it is neither, or on the web.
    """
    if not isinstance(source, str):
        raise DataError(f"an image is of type {type(source).__name__}; expected a path")
    start = source[:8].lower()
    if start.startswith(_WEB):
        raise DataError(f"image {source_name(source)} is on the web; download it and give its path")
    return source if start.startswith(_URLS) else locate(source, folder, DataError)


def image_size(source: str) -> tuple[int, int]:
    """Return width and height of an image once upright. Only the header is read.

    Raises:
        ImageError: there is no such image, or it cannot be one.
    """
    return read_image(source).size


def decoded_size(source: str) -> tuple[int, int]:
    """Return width and height of an image by decoding all of it.

    Raises:
        ImageError: it cannot be decoded.
    """
    return read_image(source).decode().size


class ImageStore:
    """Cuts images into tiles, and keeps some of them. May be called from any thread."""

    def __init__(self, processor: Processor, options: ImageOptions, cache_bytes: int) -> None:
        """Open a store.

        Args:
            processor: of the checkpoint.
            options: that the images were laid out with.
            cache_bytes: bytes of pixels that may be kept; 0: none. Whatever came first stays:
                every image comes once before any comes again, so the last used is no better.
        """
        self._processor = processor.image_processor
        self._options = options
        self._capacity = cache_bytes
        self._cached: dict[str, ProcessedImage] = {}
        self._cached_bytes = 0
        self._lock = threading.Lock()

    @property
    def cached_bytes(self) -> int:
        """Bytes of pixels kept in memory."""
        return self._cached_bytes

    def image(self, source: str, layout: ImageLayout) -> ProcessedImage:
        """Return an image in tiles.

        Raises:
            DataError: it is damaged, or has another layout than when it was checked.
        """
        cached = self._cached.get(source)
        if cached is not None:
            return cached
        try:
            opened = self._processor.open(source, self._options)
            if opened.layout == layout:
                processed = opened.cut()
        except ImageError as error:
            raise DataError(str(error)) from error
        if opened.layout != layout:
            raise DataError(
                f"image {source_name(source)} has changed its size since it was checked; start"
                " again, or save it anew if its file has not changed"
            )
        size = processed.pixel_values.nbytes
        with self._lock:
            if self._cached_bytes + size <= self._capacity and source not in self._cached:
                self._cached[source] = processed
                self._cached_bytes += size
        return processed
