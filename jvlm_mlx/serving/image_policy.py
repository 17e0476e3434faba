"""Which images a request may show, and how they are opened.

A request comes from anyone who reaches the port. Images inside of it are always fine; addresses
are fetched only if the server allows it, and never from inside its network; files are read only
from a folder that was allowed, and error messages do not say what else exists.
"""

import base64
import binascii
import re
import threading
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config.image_config import ImageOptions
from ..errors import ImageError, ImageTooLargeError
from ..processing.image_digests import ImageDigests
from ..processing.image_processor import OpenedImage
from ..processing.processor import Processor
from ..processing.sources import SourceLimits
from .api_error import ApiError, invalid, too_large

MAX_IMAGES = 16
MAX_IMAGE_BYTES = 32 * 2**20
"""Of one encoded image."""
MAX_IMAGE_PIXELS = 25_000_000
"""Of one decoded image."""
MAX_IMAGE_SIDE = 16_384
"""Pixels of its width or height."""
MAX_DECODERS = 4
"""Images decoded at the same time, of all requests: with 4 bytes a pixel, 400 MB. What is kept of
an image is a few MB."""
LOW_DETAIL_CROPS = 0
"""Tiles beside the thumbnail that `detail: low` asks for."""

_decoders = threading.BoundedSemaphore(MAX_DECODERS)
_DATA = re.compile(r"data:image/[a-z0-9.+-]{1,32};base64,", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class ImagePolicy:
    """What kinds of addresses are accepted."""

    allow_urls: bool = False
    """Whether http and https addresses are fetched, from public addresses only."""
    folder: Path | None = None
    """Folder whose files may be named by `file:` addresses, or None."""
    max_images: int = MAX_IMAGES
    max_bytes: int = MAX_IMAGE_BYTES

    def open_all(
        self,
        processor: Processor,
        messages: Sequence[dict[str, Any]],
        options: ImageOptions,
        known: ImageDigests | None = None,
    ) -> list[dict[str, Any]]:
        """Return messages with opened images in place of addresses.

        Everything is counted and refused before the first image is opened.

        Raises:
            ApiError: an image is not allowed, too large, or cannot be opened; says which one.
        """
        parts = [
            (f"messages[{place}].content[{index}].image_url", part)
            for place, message in enumerate(messages)
            if not isinstance(message["content"], str)
            for index, part in enumerate(message["content"])
            if part["type"] == "image_url"
        ]
        if len(parts) > self.max_images:
            raise too_large(
                f"the request has {len(parts)} images; at most {self.max_images} are allowed",
                "messages",
            )
        sources = {id(part): self._source(part["image_url"], where) for where, part in parts}
        opened = {}
        for where, part in parts:
            asked = options
            if part["detail"] == "low":
                asked = replace(options, max_crops=LOW_DETAIL_CROPS)
            try:
                image = processor.image_processor.open(
                    sources[id(part)], asked, self._limits, known=known
                )
                if isinstance(image, OpenedImage) and max(image.source.size) > MAX_IMAGE_SIDE:
                    raise ImageTooLargeError(
                        f"the image is {image.source.size[0]} x {image.source.size[1]} pixels;"
                        f" at most {MAX_IMAGE_SIDE} a side are allowed"
                    )
                with _decoders:
                    image.load()
                opened[id(part)] = image
            except ImageTooLargeError as error:
                raise too_large(f"{where}: {_without_paths(error)}", where) from None
            except ImageError as error:
                raise invalid(f"{where}: {_without_paths(error)}", where, "invalid_image") from None
        return [
            {
                "role": message["role"],
                "content": message["content"]
                if isinstance(message["content"], str)
                else [
                    {"type": "image", "image": opened[id(part)]}
                    if part["type"] == "image_url"
                    else part
                    for part in message["content"]
                ],
            }
            for message in messages
        ]

    @property
    def _limits(self) -> SourceLimits:
        """What opening an image of a stranger may take."""
        return SourceLimits(
            max_pixels=MAX_IMAGE_PIXELS, max_bytes=self.max_bytes, private_addresses=False
        )

    def _source(self, address: str, where: str) -> Any:
        scheme = address[:16].partition(":")[0].lower()
        if scheme == "data":
            return self._data(address, where)
        if scheme in ("http", "https"):
            if not self.allow_urls:
                raise invalid(
                    f"{where}: this server fetches no images; send the image itself as a data URI",
                    where, "image_url_not_allowed",
                )  # fmt: skip
            return address
        if scheme == "file" and self.folder is not None:
            return self._file(address, self.folder, where)
        raise invalid(
            f"{where}: expected a data URI (data:image/jpeg;base64,...)"
            f"{' or an https address' if self.allow_urls else ''}",
            where, "image_url_not_allowed",
        )  # fmt: skip

    def _data(self, address: str, where: str) -> bytes:
        # Four characters for three bytes: known to be too large without decoding it.
        if len(address) * 3 // 4 > self.max_bytes + 64:
            raise self._too_large(where)
        head = _DATA.match(address)
        if head is None:
            raise invalid(f"{where}: expected data:image/...;base64,...", where, "invalid_image")
        try:
            return base64.b64decode(address[head.end() :], validate=True)
        except (binascii.Error, ValueError):
            raise invalid(f"{where}: the base64 is damaged", where, "invalid_image") from None

    def _file(self, address: str, folder: Path, where: str) -> Path:
        """Return a file below the allowed folder, links resolved."""
        refusal = invalid(
            f"{where}: there is no such file in the allowed folder", where, "invalid_image"
        )
        parts = urllib.parse.urlsplit(address)
        try:
            path = Path(urllib.request.url2pathname(parts.path)).resolve(strict=True)
            inside = path.is_relative_to(folder.resolve(strict=True)) and path.is_file()
        except (OSError, ValueError, RuntimeError):
            raise refusal from None
        if parts.netloc not in ("", "localhost") or not inside:
            raise refusal
        if path.stat().st_size > self.max_bytes:
            raise self._too_large(where)
        return path

    def _too_large(self, where: str) -> ApiError:
        size = self.max_bytes // 2**20
        return too_large(f"{where}: the image is larger than {size} MiB", where)


def _without_paths(error: ImageError) -> str:
    """Return an error's message without the name of the source, which may be a path."""
    return re.sub(r"'[^']*/[^']*'", "the image", str(error))
