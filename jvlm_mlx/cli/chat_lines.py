"""What is typed in a chat: questions of several lines, dropped image files, Tab and history."""

import re
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import ImageError, RequestError
from ..files import local_path
from ..processing.image_formats import SUFFIXES

FENCE = '"""'
_WORD = r"""'[^']*'|"[^"]*"|(?:\\.|[^\s\\'"])+"""
"""A path as a terminal writes a dropped file: in quotes, or with a backslash before spaces."""
_FIRST_WORD = re.compile(rf"\s*({_WORD})(?=\s|$)")
_LAST_WORD = re.compile(rf"(?:^|\s)({_WORD})\s*$")
_UNFINISHED_WORD = re.compile(r"(?:\\.|[^\s\\])*$")
_SPECIAL = re.compile(r"([\s\\'\"])")


def read_question(read_line: Callable[[bool], str]) -> str:
    r'''Read lines until a question is complete.

    A line that ends with a backslash continues in the next one. Everything between two lines
    that begin and end with three quotes is one question, as it is:

        > """
        . Two lines,
        . and \ is nothing special.
        . """

    Args:
        read_line: returns the next line, without its end; called with whether a question continues.

    Raises:
        EOFError: there are no more lines.
        RequestError: they end before the closing quotes.
    '''
    line = read_line(False)
    if line.strip().startswith(FENCE):
        return _until_fence(line.strip().removeprefix(FENCE), read_line)
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        with suppress(EOFError):  # then the question ends here
            lines.append(read_line(True))
    return _valid_text("\n".join(lines))


def _until_fence(first: str, read_line: Callable[[bool], str]) -> str:
    lines = [first]
    while not lines[-1].rstrip().endswith(FENCE):
        try:
            lines.append(read_line(True))
        except EOFError:
            raise RequestError(
                f"the question after {FENCE} has no end, so it was not asked; close it with {FENCE}"
            ) from None
    lines[-1] = lines[-1].rstrip().removesuffix(FENCE)
    return _valid_text("\n".join(lines))


def _valid_text(text: str) -> str:
    """Bytes that are no UTF-8 arrive as lone surrogates, which nothing can be done with."""
    return text.encode("utf-8", "replace").decode("utf-8").strip()


def take_images(line: str) -> tuple[list[str], str]:
    r"""Take the paths of image files from both ends of a question, as they are when dropped.

    '/Users/ada/My\ cat.jpg  What is this?' gives ['/Users/ada/My cat.jpg'] and 'What is this?'.

    Returns:
        Paths of existing image files, and the rest of the question.
    """
    if _is_image(line.strip()):
        return [line.strip()], ""
    first: list[str] = []
    last: list[str] = []
    while (found := _FIRST_WORD.match(line)) and _is_image(path := _unquoted(found[1])):
        first.append(path)
        line = line[found.end() :]
    while (found := _LAST_WORD.search(line)) and _is_image(path := _unquoted(found[1])):
        last.insert(0, path)
        line = line[: found.start()]
    return first + last, line.strip()


def _unquoted(word: str) -> str:
    if word[0] in "'\"":
        return word[1:-1]
    word = re.sub(r"\\(.)", r"\1", word)
    if word.startswith("file://"):
        return urllib.request.url2pathname(urllib.parse.urlsplit(word).path)
    return word


def _is_image(path: str) -> bool:
    """Return whether a path that starts at a folder is the file of an image, by its name."""
    if not path.startswith(("/", "~", "./", "../")) or "\n" in path:
        return False
    if not path.lower().endswith((*SUFFIXES, ".pdf")):
        return False
    try:
        return local_path(path, ImageError).is_file()
    except ImageError:
        return False


def complete(line: str, commands: Iterable[str]) -> list[str]:
    """Return what the last word of a line may become: a command, or a path with its folder.

    Args:
        line: up to the cursor.
        commands: names, without the slash.
    """
    if re.fullmatch(r"/[a-z]*", line):
        matching = [f"/{name} " for name in commands if name.startswith(line[1:])]
        if matching:
            return matching
    found = _UNFINISHED_WORD.search(line)
    word = re.sub(r"\\(.)", r"\1", found[0] if found else "")
    if not word.startswith(("/", "~", ".")) and not re.match(r"/[a-z]+\s", line):
        return []
    folder, _, name = word.rpartition("/")
    shown = f"{folder}/" if "/" in word else ""
    try:
        entries = sorted(local_path(shown or ".", ImageError).iterdir())
    except (ImageError, OSError):
        return []
    return [
        _SPECIAL.sub(r"\\\1", f"{shown}{entry.name}") + ("/" if entry.is_dir() else " ")
        for entry in entries
        if entry.name.startswith(name) and (name or not entry.name.startswith("."))
    ]


@contextmanager
def line_editing(history: Path | None, commands: Iterable[str]) -> Iterator[None]:
    """Make arrow keys, Tab and history work where Python has readline."""
    try:
        import readline
    except ImportError:
        yield
        return

    def next_completion(_: str, index: int) -> str | None:
        line = readline.get_line_buffer()[: readline.get_endidx()]
        found = _UNFINISHED_WORD.search(line)
        # The word begins before what readline replaces if there is an escaped space in it.
        before = readline.get_begidx() - (found.start() if found else 0)
        candidates = complete(line, commands)
        return candidates[index][before:] if index < len(candidates) else None

    # The library of macOS has a language of its own.
    is_libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")
    previous = readline.get_completer(), readline.get_completer_delims()
    readline.set_completer_delims(" \t\n")
    readline.set_completer(next_completion)
    if history is not None:
        try:
            with suppress(FileNotFoundError):
                readline.read_history_file(history)
        except OSError as error:
            # What cannot be read is no history, and must not be written over.
            _warn_of_history(history, "read", error)
            history = None
    try:
        yield
    finally:
        readline.set_completer(previous[0])
        readline.set_completer_delims(previous[1])
        if history is not None:
            try:
                readline.write_history_file(history)
            except OSError as error:
                _warn_of_history(history, "written", error)


def _warn_of_history(history: Path, action: str, error: OSError) -> None:
    print(f"warning: the history {history} cannot be {action}: {error.strerror}", file=sys.stderr)
