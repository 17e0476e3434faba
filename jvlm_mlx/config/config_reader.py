"""Reads one JSON object of a checkpoint key by key, and forgets nothing.

A key that is asked for is known. A value that the implementation cannot honor is refused by
name. What nobody asked for is left over, and `unread()` lists it, so that no setting is ever
ignored in silence.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..errors import CheckpointError, UnsupportedSettingError

T = TypeVar("T")

_REQUIRED: Any = object()


def integer(value: Any) -> int:
    """Accept a JSON whole number (not a boolean)."""
    return _whole(value, -math.inf, "a whole number")


def size(value: Any) -> int:
    """Accept a whole number above 0."""
    return _whole(value, 1, "a whole number above 0")


def count(value: Any) -> int:
    """Accept a whole number that is not negative."""
    return _whole(value, 0, "a whole number that is not negative")


def _whole(value: Any, lowest: float, expected: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        raise TypeError(expected)
    return value


def number(value: Any) -> float:
    """Accept a JSON number (not a boolean, and not what Python reads beyond JSON)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError("a number")
    return float(value)


def positive(value: Any) -> float:
    """Accept a number above 0."""
    if number(value) <= 0:
        raise TypeError("a number above 0")
    return float(value)


def boolean(value: Any) -> bool:
    """Accept true or false."""
    if not isinstance(value, bool):
        raise TypeError("true or false")
    return value


def text(value: Any) -> str:
    """Accept a JSON string."""
    if not isinstance(value, str):
        raise TypeError("a text")
    return value


def integers(value: Any) -> tuple[int, ...]:
    """Accept a list of whole numbers."""
    if not isinstance(value, list):
        raise TypeError("a list of whole numbers")
    return tuple(integer(item) for item in value)


def sizes(value: Any) -> tuple[int, ...]:
    """Accept a list of whole numbers above 0."""
    if not isinstance(value, list):
        raise TypeError("a list of whole numbers above 0")
    return tuple(size(item) for item in value)


def numbers(value: Any) -> tuple[float, ...]:
    """Accept a list of numbers."""
    if not isinstance(value, list):
        raise TypeError("a list of numbers")
    return tuple(number(item) for item in value)


def read_json(file: Path) -> Any:
    """Read a JSON file.

    Raises:
        CheckpointError: the file is missing, unreadable or no JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file.parent} has no {file.name}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None


class ConfigReader:
    """One JSON object `values`; `path` says where it stands, for messages (`reader.json: ...`)."""

    def __init__(self, values: Any, path: str) -> None:
        if not isinstance(values, dict):
            raise CheckpointError(f"{path} must be a JSON object, found {values!r}")
        self._values: dict[str, Any] = values
        self._path = path
        self._known: set[str] = set()
        self._sections: list[ConfigReader] = []

    def name(self, key: str) -> str:
        """The full name of a key, for messages."""
        return f"{self._path}.{key}"

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def read(self, key: str, kind: Callable[[Any], T], absent: T = _REQUIRED) -> T:
        """Return the value of `key`. A missing key or null gives `absent`, or is an error.

        Raises:
            CheckpointError: the key is required and missing, or the value is of another kind.
        """
        self._known.add(key)
        value = self._values.get(key)
        if value is None:
            if absent is _REQUIRED:
                raise CheckpointError(f"{self.name(key)} is missing")
            return absent
        try:
            return kind(value)
        except TypeError as expected:
            raise CheckpointError(f"{self.name(key)} is {value!r}; expected {expected}") from None

    def choice(self, key: str, choices: tuple[str, ...], absent: str = _REQUIRED) -> str:
        """Return the value of `key`, one of `choices`; refuse any other by name."""
        value = self.read(key, text, absent)
        if value not in choices:
            self.refuse(key, value, " or ".join(repr(choice) for choice in choices))
        return value

    def only(self, key: str, *supported: Any) -> None:
        """Refuse any value of `key` but `supported`; a missing key is as good as the first."""
        self._known.add(key)
        value = self._values.get(key, supported[0])
        if not any(
            value == one and isinstance(value, bool) == isinstance(one, bool) for one in supported
        ):
            self.refuse(key, value, " or ".join(repr(one) for one in supported))

    def harmless(self, *keys: str) -> None:
        """Mark keys as known that have no effect on inference (dropout rates and the like)."""
        self._known.update(keys)

    def section(self, key: str) -> "ConfigReader":
        """Return the reader of a nested object.

        Raises:
            CheckpointError: the key is missing or is no object.
        """
        self._known.add(key)
        if key not in self._values:
            raise CheckpointError(f"{self.name(key)} is missing")
        nested = ConfigReader(self._values[key], self.name(key))
        self._sections.append(nested)
        return nested

    def refuse(self, key: str, value: Any, supported: str) -> None:
        """Raise the error for a setting that is not implemented."""
        raise UnsupportedSettingError(
            f"{self.name(key)} = {value!r} is not supported; supported: {supported}"
        )

    def unread(self) -> list[str]:
        """Full names of all keys, here and in nested objects, that nobody asked for."""
        names = [self.name(key) for key in self._values if key not in self._known]
        for section in self._sections:
            names += section.unread()
        return names
