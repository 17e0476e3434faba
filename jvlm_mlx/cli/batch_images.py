"""Requests of a batch that ask one question about many images: files, pages, standard input."""

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import ImageError, RequestError
from ..files import reason
from ..processing.documents import expand, page_range
from ..processing.image_formats import SUFFIXES
from ..processing.pdf import is_pdf
from ..processing.sources import Page, source_name
from ..progress import Progress, ProgressEvent, no_progress
from .batch_requests import STANDARD_STREAM, FileRequest
from .screen_images import refuse_screen_images
from .standard_streams import read_bytes

MAX_FILE_PAGES = 2000
"""Pages of one file; each is a request of its own, so that a prompt's limit does not hold."""
_TIFF_MAGIC = (b"II*\0", b"MM\0*")


@contextlib.contextmanager
def image_patterns(patterns: Sequence[str], folder: Path) -> Iterator[tuple[list[str], Path, str]]:
    """Let standard input be a file, while requests about it are answered.

    Args:
        patterns: as for `image_requests`; or `-` alone.
        folder: that relative patterns start from.

    Yields:
        Patterns and folder for `image_requests`, and what responses depend on beside them: what
        came through standard input.

    Raises:
        RequestError: there are others beside `-`, or nothing comes.
    """
    if str(STANDARD_STREAM) not in patterns:
        yield list(patterns), folder, ""
        return
    if len(patterns) > 1:
        raise RequestError("- is standard input, and no other image can be beside it")
    data = read_bytes("-")
    suffix = ".pdf" if is_pdf(data) else ".tiff" if data[:4] in _TIFF_MAGIC else ""
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary, f"standard-input{suffix}")
        file.write_bytes(data)
        yield [file.name], Path(temporary), hashlib.sha256(data).hexdigest()


def image_requests(
    patterns: Sequence[str],
    prompt: str,
    folder: Path,
    config: str,
    *,
    per_page: bool = False,
    progress: Progress = no_progress,
) -> list[FileRequest]:
    """Return one request for each image file; its id is the file's path.

    Args:
        patterns: paths, globs such as `scans/**/*.png`, or folders, of which all image files are
            taken; the files of each in sorted order.
        prompt: asked of every image.
        folder: that relative patterns start from.
        config: as for `FileRequest.of`.
        per_page: whether each page of a PDF, and each frame of a TIFF, is a request, with an id
            such as `report.pdf#3`.
        progress: called with how many files have been looked into for their pages.

    Raises:
        RequestError: a pattern matches no file, or means the screen or the clipboard.
    """
    refuse_screen_images(patterns)
    files: dict[str, None] = {}
    for pattern in patterns:
        found = _expand(pattern, folder)
        if not found:
            raise RequestError(f"{source_name(pattern)} matches no image file")
        files |= dict.fromkeys(sorted(found))
    paths = files
    if per_page:
        paths = {}
        for done, path in enumerate(files, 1):
            paths |= dict.fromkeys(_pages(path, folder))
            progress(ProgressEvent("looking for pages", done, len(files), "file"))
    return [
        FileRequest.of(number, json.dumps({"id": p, "prompt": prompt, "images": [p]}), config)
        for number, p in enumerate(paths, 1)
    ]


def _pages(path: str, folder: Path) -> list[str]:
    """Return the pages or frames of a file, or the file itself if it has no several."""
    named = page_range(path)
    source = str(folder / path)
    if named is None and path.lower().endswith((".tif", ".tiff")):
        source = f"{source}#1-"
    try:
        pages = expand(source, max_pages=MAX_FILE_PAGES)
    except ImageError:  # is said where the request is answered
        return [path]
    if not all(isinstance(page, Page) for page in pages) or (named is None and len(pages) == 1):
        return [path]
    file = path if named is None else named.source
    return [f"{file}#{page.number}" for page in pages]


def _expand(pattern: str, folder: Path) -> list[str]:
    try:
        named = page_range(pattern)
        if named is not None and named.source != pattern and (folder / named.source).is_file():
            return [pattern]
        path = Path(pattern).expanduser()
        if (folder / path).is_dir():
            found = (folder / path).rglob("*")
            files = [file for file in found if file.name.lower().endswith((*SUFFIXES, ".pdf"))]
        elif (folder / path).is_file():  # a name may have brackets
            files = [folder / path]
        elif path.is_absolute():
            files = list(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        else:
            files = list(folder.glob(str(path)))
        files = [file for file in files if file.is_file()]
    except (OSError, RuntimeError, ValueError, NotImplementedError) as error:
        raise RequestError(f"{source_name(pattern)} cannot be read: {reason(error)}") from None
    return [str(file if path.is_absolute() else file.relative_to(folder)) for file in files]
