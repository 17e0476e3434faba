"""Reads JSON that strangers wrote: configs, indexes, adapters, requests, training examples.

Python's parser has no limits of its own. Deep nesting ends in a RecursionError, here or in
whoever copies or prints the value later; an integer of a thousand digits overflows wherever it
meets a float; a file without an end is read without an end. Here each is one line of an error.
"""

import json
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, JvlmError

MAX_BYTES = 64 * 2**20
"""Room for images inside a request; other files are far below it."""
MAX_DEPTH = 100
MAX_INTEGER_DIGITS = 20
"""Enough for 64 bits."""
MAX_QUOTED = 80


def quoted(value: Any) -> str:
    """Return a value as an error message shows it: one line of at most 80 characters."""
    try:
        shown = repr(value)
    except (ValueError, RecursionError):  # an integer of too many digits, or a nest of lists
        shown = "a value too large to print"
    return shown if len(shown) <= MAX_QUOTED else shown[: MAX_QUOTED - 3] + "..."


def parse_json(text: str | bytes) -> Any:
    """Return the value that a JSON text encodes.

    Raises:
        ValueError: in one line, that it is no JSON (in UTF-8) or exceeds a limit.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES // 2**20} MB")
    try:
        decoded = text.decode() if isinstance(text, bytes) else text
        # Some editors put a byte order mark in front.
        value = json.loads(decoded.removeprefix("\ufeff"), parse_int=_integer)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from None
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in _children(node)]
    if level:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    return value


def read_json(file: Path, error_type: type[JvlmError] = CheckpointError) -> Any:
    """Return the contents of a JSON file.

    Raises:
        JvlmError: of `error_type`: the file is missing, unreadable, no JSON, or exceeds a limit.
    """
    try:
        with file.open("rb") as opened:
            # Devices and pipes may never end.
            return parse_json(opened.read(MAX_BYTES + 1))
    except FileNotFoundError:
        raise error_type(f"{file.parent} has no {file.name}") from None
    except OSError as error:
        raise error_type(f"{file} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise error_type(f"{file} is no JSON: {error}") from None


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > MAX_INTEGER_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _children(node: Any) -> Any:
    if isinstance(node, dict):
        return node.values()
    return node if isinstance(node, list) else ()
