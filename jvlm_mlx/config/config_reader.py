"""Reads one JSON object of a checkpoint key by key, and keeps track of the keys that were read.

A value that is not implemented is refused by name. `unread()` lists the keys that nobody read, so
that no setting is ignored in silence.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import CheckpointError, UnsupportedSettingError
from .json_file import quoted

T = TypeVar("T")

_REQUIRED: Any = object()

MAX_INTEGER = 2**31 - 1
"""MLX counts in 32 bits: no id, size or number of layers can be above."""


def integer(value: Any) -> int:
    """Accept a JSON integer of 32 bits (not a boolean)."""
    return _integer(value, -MAX_INTEGER, "an integer")


def size(value: Any) -> int:
    """Accept an integer above 0."""
    return _integer(value, 1, "an integer above 0")


def count(value: Any) -> int:
    """Accept an integer that is not negative."""
    return _integer(value, 0, "an integer that is not negative")


def _integer(value: Any, lowest: int, expected: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        raise TypeError(expected)
    if value > MAX_INTEGER:
        raise TypeError(f"an integer of at most {MAX_INTEGER}")
    return value


def number(value: Any) -> float:
    """Accept a JSON number (not a boolean, and not what Python reads beyond JSON)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("a number")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise TypeError("a finite number")
    return found


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
        raise TypeError("a string")
    return value


def integers(value: Any) -> tuple[int, ...]:
    """Accept a list of integers."""
    if not isinstance(value, list):
        raise TypeError("a list of integers")
    return tuple(integer(item) for item in value)


def sizes(value: Any) -> tuple[int, ...]:
    """Accept a list of integers above 0."""
    if not isinstance(value, list):
        raise TypeError("a list of integers above 0")
    return tuple(size(item) for item in value)


def numbers(value: Any) -> tuple[float, ...]:
    """Accept a list of numbers."""
    if not isinstance(value, list):
        raise TypeError("a list of numbers")
    return tuple(number(item) for item in value)


class ConfigReader:
    """One JSON object `values`; `path` is its file and the keys that lead to it, for messages."""

    def __init__(self, values: Any, path: str) -> None:
        if not isinstance(values, dict):
            raise CheckpointError(f"{path} must be a JSON object, found {quoted(values)}")
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
            raise CheckpointError(
                f"{self.name(key)} is {quoted(value)}; expected {expected}"
            ) from None

    def choice(
        self,
        key: str,
        choices: tuple[str, ...],
        absent: str = _REQUIRED,
        *,
        fold_case: bool = False,
    ) -> str:
        """Return the value of `key`, one of `choices`; refuse any other by name."""
        value = self.read(key, text, absent)
        if fold_case:
            value = value.lower()
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

    def optional_section(self, key: str) -> "ConfigReader":
        """Return the reader of a nested object, of an empty one if the key is missing or null."""
        if key in self:
            return self.section(key)
        self._known.add(key)
        return ConfigReader({}, self.name(key))

    def refuse(self, key: str, value: Any, supported: str) -> None:
        """Raise the error for a setting that is not implemented."""
        raise UnsupportedSettingError(
            f"{self.name(key)} = {quoted(value)} is not supported; supported: {supported}"
        )

    def unread(self) -> list[str]:
        """Full names of all keys, here and in nested objects, that nobody read."""
        names = [self.name(key) for key in self._values if key not in self._known]
        for section in self._sections:
            names += section.unread()
        return names
