"""Pages of PDF files, and frames of image files that have several.

report.pdf           all pages
report.pdf#3         the third page
report.pdf#2-4       three pages
scan.tiff#2-         the second frame and all after it
"""

import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..config.image_config import DEFAULT_MAX_PIXELS
from ..errors import ImageError
from .download import SCHEMES
from .image_decoding import count_frames
from .pdf import MAX_PAGES, is_pdf, pdf_pages
from .sources import (
    DEFAULT_LIMITS,
    Page,
    SourceLimits,
    fetch,
    path_of_file_url,
    scheme_of,
    source_name,
    with_file,
)

_RANGE = re.compile(r"(.+)#([0-9]{1,9})(?:(-)([0-9]{0,9}))?", re.DOTALL)


@dataclass(frozen=True)
class PageRange:
    """Pages that a source names, counted from 1."""

    source: str
    """Path or URL."""
    first: int
    last: int | None
    """None: to the end."""


def page_range(source: Any) -> PageRange | None:
    """Return the pages that a path or URL names, as `report.pdf` or `scan.tiff#2-4`.

    None if it names none: it is an image, or a file whose name only looks like that.
    """
    if not isinstance(source, str | os.PathLike):
        return None
    text = os.fspath(source)
    if not isinstance(text, str) or scheme_of(text) == "data":
        return None
    found = _RANGE.fullmatch(text)
    if found is not None and not os.path.lexists(Path(text)):
        path, first, dash, last = found.groups()
        end = int(last) if last else None if dash else int(first)
        return PageRange(path, int(first), end)
    return PageRange(text, 1, None) if _is_called_pdf(text) else None


def _is_called_pdf(text: str) -> bool:
    if scheme_of(text) in SCHEMES:
        text = text.partition("#")[0].partition("?")[0]
    return text.lower().endswith(".pdf")


def expand(
    source: Any,
    limits: SourceLimits = DEFAULT_LIMITS,
    cancel: threading.Event | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    max_pages: int | None = None,
) -> list[Any]:
    """Return the pages or frames that a source names; or the source alone.

    Args:
        source: as `read_image` takes it.
        limits: of size and time.
        cancel: ends it when it is set.
        max_pixels: pixels that a page of a PDF is drawn with.
        max_pages: most pages or frames; None: `MAX_PAGES`.

    Raises:
        ImageError: there is no such file, or it has no such pages.
        RequestError: `cancel` is set.
    """
    if not may_have_pages(source):
        return [source]
    name = source_name(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return pdf_pages(bytes(source), name, 1, None, max_pixels, cancel, max_pages)
    pages = page_range(source)
    assert pages is not None
    scheme = scheme_of(pages.source)
    if scheme in SCHEMES:
        data, _ = fetch(pages.source, name, limits, cancel)
        if not is_pdf(data):
            return [source]
        return pdf_pages(data, name, pages.first, pages.last, max_pixels, cancel, max_pages)
    path = path_of_file_url(pages.source, name) if scheme == "file" else pages.source

    def look(stream: IO[bytes]) -> list[Any]:
        start = stream.read(1024) if stream.seekable() else b""
        if is_pdf(start):
            file = str(Path(path).expanduser().absolute())
            return pdf_pages(file, name, pages.first, pages.last, max_pixels, cancel, max_pages)
        if pages.source == str(source):
            return [source]  # it is only called like a PDF
        stream.seek(0)
        last = pages.last or count_frames(stream, name, limits.max_pixels)
        most = MAX_PAGES if max_pages is None else max_pages
        if not 0 < last - pages.first + 1 <= most or pages.first < 1:
            raise ImageError(f"{name} names {last - pages.first + 1} frames; expected 1 to {most}")
        return [
            Page(path, number, f"frame {number} of {source_name(path)}", None)
            for number in range(pages.first, last + 1)
        ]

    return with_file(path, name, look)


def may_have_pages(source: object) -> bool:
    """Return whether a source may be a PDF, or names pages or frames."""
    if isinstance(source, bytes | bytearray | memoryview):
        return is_pdf(bytes(source[:1024]))
    pages = page_range(source)
    # The fragment of an image's URL means nothing.
    return pages is not None and (
        scheme_of(pages.source) not in SCHEMES or page_range(pages.source) is not None
    )
