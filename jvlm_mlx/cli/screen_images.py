"""Images that are in no file: `clipboard:` and `screenshot:`, on the command line of a Mac.

Whoever types these sits in front of the screen. A library or a server must not look at it because
a text says so, so they are no sources of `read_image`: subcommands replace them here first.

clipboard:           what was copied, an image or the file of one
screenshot:          a part of the screen, or a window, that is chosen with the mouse
screenshot:screen    all of the main screen
"""

import io
import platform
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from PIL import Image, ImageGrab

from ..errors import ImageError, RequestError
from ..files import reason
from ..processing.sources import Page

ScreenImage: TypeAlias = str | Page
"""A path, or an image that has a name for messages but no file."""

_SCREENSHOTS = {"screenshot:": ["-i"], "screenshot:screen": ["-m"]}
"""What `screencapture` is called with, beside `-x`, which spares the sound."""
_COPIED_FILE = "POSIX path of (the clipboard as «class furl»)"
_SCHEMES = ("clipboard:", "screenshot:")


def is_screen_image(source: str) -> bool:
    """Return whether a source names the clipboard or the screen."""
    return source.startswith(_SCHEMES)


def screen_images(source: str) -> Sequence[ScreenImage]:
    """Return the images that the clipboard holds, or one of the screen.

    Raises:
        ImageError: there is no image, none was taken, or this is no Mac.
    """
    if source != "clipboard:" and source not in _SCREENSHOTS:
        known = ", ".join(("clipboard:", *_SCREENSHOTS))
        raise ImageError(f"{source!r} is not known; expected {known}, or ./{source} for a file")
    if platform.system() != "Darwin":
        raise ImageError(f"{source} works on macOS alone; save the image and give its path")
    return _copied() if source == "clipboard:" else [_screenshot(_SCREENSHOTS[source])]


def refuse_screen_images(sources: Sequence[str]) -> None:
    """Refuse them where a command must find the same images again when it resumes.

    Raises:
        RequestError: names the first of them.
    """
    for source in filter(is_screen_image, sources):
        raise RequestError(
            f"{source} is another image every time, so nothing could be resumed; ask"
            f" `jvlm generate -i {source}`, or save it as a file"
        )


def _copied() -> Sequence[ScreenImage]:
    # Of a file that was copied in the Finder, the clipboard also holds an image: its icon.
    found = _run(["osascript", "-e", _COPIED_FILE])
    path = found.stdout.decode("utf-8", "replace").removesuffix("\n")
    if found.returncode == 0 and Path(path).is_file():
        return [path]
    try:
        copied = ImageGrab.grabclipboard()
    except Exception as error:  # whatever a program has put there
        raise ImageError(f"the clipboard cannot be read: {reason(error)}") from error
    if isinstance(copied, list) and copied:
        return copied
    if not isinstance(copied, Image.Image):
        raise ImageError("the clipboard holds no image; copy one, or the file of one, first")
    stream = io.BytesIO()
    try:
        copied.save(stream, "PNG")
    except Exception as error:  # it is decoded only now
        raise ImageError(f"the image on the clipboard is damaged: {reason(error)}") from error
    return [Page(stream.getvalue(), 1, "the clipboard", None)]


def _screenshot(flags: list[str]) -> Page:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "screenshot.png")
        finished = _run(["screencapture", "-x", *flags, str(path)])
        if not path.exists():  # after Esc, or without permission
            said = finished.stderr.decode("utf-8", "replace").split()
            raise ImageError(
                "no screenshot was taken"
                + (f": {' '.join(said)[:200]}" if said else "")
                + "; if macOS asks, allow the terminal to record the screen"
            )
        return Page(path.read_bytes(), 1, "the screenshot", None)


def _run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(command, capture_output=True, check=False)
    except OSError as error:
        raise ImageError(f"{command[0]} cannot be run: {reason(error)}") from error
