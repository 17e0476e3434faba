"""Pages of PDF files, drawn in another process.

They are drawn at the number of pixels that the image processor keeps, so that it need not reduce
them. A PDF of a stranger may be made to take for ever, so it is read in a process of its own, with
limits of time and memory.
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import ImageError, RequestError
from ..files import reason
from ..units import plural
from .sources import Page

MAX_PAGES = 100
"""Of a document, if no range names fewer."""
MAX_SECONDS = 30
"""For looking through a document, and for drawing a page."""
MAX_MEMORY = 2 * 2**30
_POLL = 0.1
_WORKER = Path(__file__).with_name("pdf_worker.py")


def is_pdf(data: bytes) -> bool:
    """Return whether a file that begins so is a PDF."""
    return b"%PDF-" in data[:1024]


def pdf_pages(
    file: str | bytes,
    name: str,
    first: int,
    last: int | None,
    max_pixels: int,
    cancel: threading.Event | None = None,
    max_pages: int | None = None,
) -> list[Page]:
    """Return pages of a PDF; none is drawn yet.

    Args:
        file: its path, or its contents.
        name: for messages.
        first: page, counted from 1.
        last: page; None: of the document.
        max_pixels: of each page.
        cancel: ends it when it is set.
        max_pages: most pages; None: `MAX_PAGES`.

    Raises:
        ImageError: it is damaged or encrypted, has no such pages, or too many of them.
        RequestError: `cancel` is set.
    """
    if first < 1 or (last is not None and last < first):
        raise ImageError(f"{name} has no such pages; they are counted from 1")
    most = MAX_PAGES if max_pages is None else max_pages
    end = first + most if last is None else min(last, first + most)
    answer, _ = _ask(["sizes", str(first), str(end)], file, name, cancel)
    count = int(answer["pages"])
    highest = max(first, last or 0)
    if highest > count:
        raise ImageError(f"{name} has {plural(count, 'page')}, and no page {highest}")
    sizes: Sequence[Any] = answer["sizes"]
    if len(sizes) > most:
        raise ImageError(
            f"{name} has {count} pages; at most {most} are opened at once, so name some:"
            f" FILE#{first}-{first + 9}"
        )
    found = []
    for number, (width, height) in enumerate(sizes, first):
        if min(width, height) <= 0:
            raise ImageError(f"page {number} of {name} is empty")
        scale = (max_pixels / (width * height)) ** 0.5
        size = max(1, round(width * scale)), max(1, round(height * scale))
        found.append(Page(file, number, f"page {number} of {name}", size))
    return found


def draw_page(page: Page, cancel: threading.Event | None = None) -> Image.Image:
    """Return a page of a PDF as an RGB image of its `drawn_size`.

    Raises:
        ImageError: it is damaged, or takes too long.
        RequestError: `cancel` is set.
    """
    assert page.drawn_size is not None
    width, height = page.drawn_size
    answer, data = _ask(
        ["render", str(page.number), str(width * height)], page.file, page.name, cancel
    )
    size = tuple(answer["size"])
    image = Image.frombytes("RGB", size, data)
    # It is drawn to within a pixel of the size that was planned with.
    return image if size == page.drawn_size else image.resize(page.drawn_size)


def _ask(
    request: list[str], file: str | bytes, name: str, cancel: threading.Event | None
) -> tuple[dict[str, Any], bytes]:
    """Let the worker answer; return its line, and what follows it."""
    if importlib.util.find_spec("pypdfium2") is None:
        raise ImageError(
            f"{name} is PDF; install jvlm-mlx[pdf] to open its pages, or save them as images"
        )
    path = "-" if isinstance(file, bytes) else file
    command = [
        sys.executable,
        "-I",
        str(_WORKER),
        *request,
        str(MAX_MEMORY),
        str(MAX_SECONDS),
        path,
    ]
    deadline = time.monotonic() + MAX_SECONDS
    with ExitStack() as stack:
        try:
            # No pipe, into which `communicate` does not go on writing after a timeout.
            stdin = stack.enter_context(tempfile.TemporaryFile())
            if isinstance(file, bytes):
                stdin.write(file)
                stdin.seek(0)
            process = stack.enter_context(
                subprocess.Popen(
                    command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
                )
            )
        except OSError as error:  # a full disk, or no process more
            raise ImageError(f"{name} cannot be read: {reason(error)}") from error
        try:
            while True:
                try:
                    output, _ = process.communicate(timeout=_POLL)
                    break
                except subprocess.TimeoutExpired:
                    if cancel is not None and cancel.is_set():
                        raise RequestError(
                            "the request was canceled while a PDF was read"
                        ) from None
                    if time.monotonic() > deadline:
                        raise ImageError(
                            f"{name} takes longer than {MAX_SECONDS} seconds to read"
                        ) from None
        finally:
            if process.poll() is None:
                process.kill()
    line, _, data = output.partition(b"\n")
    if process.returncode != 0 or not line:
        raise ImageError(f"{name} cannot be read: it takes too much time or memory, or is damaged")
    answer: dict[str, Any] = json.loads(line)
    if "password" in answer.get("error", ""):
        raise ImageError(f"{name} is protected by a password; save it without one")
    if "error" in answer:
        said = answer["error"][:200].replace(" (PDFium: Success).", "")
        raise ImageError(f"{name} cannot be read: {said}")
    return answer, data
