"""Cells of a question file as pandas would read them: missing values, column types, lists."""

import ast
import re
import string
import warnings
from collections.abc import Mapping
from typing import Any

Cell = str | int | float | list[Any] | dict[str, Any] | None
"""None is a missing value."""
Row = Mapping[str, Cell]

LETTERS = string.ascii_uppercase
OPTIONS = tuple(LETTERS)

_MISSING = {
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN",
    "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
}  # fmt: skip
"""What `pandas.read_csv` takes for a missing value."""
_WHOLE = re.compile(r"\s*[+-]?\d{1,18}\s*", re.ASCII)
_DECIMAL = re.compile(
    r"\s*[+-]?(\d+\.?\d*([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?|inf(inity)?)\s*",
    re.ASCII | re.IGNORECASE,
)


class ColumnType:
    """The type of one column, found by looking at every cell: int, float or text."""

    def __init__(self) -> None:
        self._whole = self._decimal = True
        self._missing = self._seen = False

    def look(self, text: str) -> None:
        """Take one more cell into account."""
        if text in _MISSING:
            self._missing = True
            return
        self._seen = True
        if self._decimal and not _WHOLE.fullmatch(text):
            self._whole = False
            self._decimal = _DECIMAL.fullmatch(text) is not None

    def cell(self, text: str) -> Cell:
        """Return a cell of this column. Numbers with gaps are decimal, so that 3 is 3.0 there."""
        if text in _MISSING:
            return None
        if self._seen and self._whole and not self._missing:
            return int(text)
        return float(text) if self._seen and self._decimal else text


def untyped(text: str) -> str | None:
    """Return the text of a cell, or None if it is a missing value."""
    return None if text in _MISSING else text


def text_of(cell: Cell) -> str:
    """Return a cell as text; a missing one is `nan`, as in the published scorers."""
    return "nan" if cell is None else str(cell)


def is_given(row: Row, column: str) -> bool:
    """Return whether a row has a value in a column."""
    return row.get(column) is not None


def index_of(row: Row) -> str:
    """Return the index of a row as text, by which rows, answers and runs are joined."""
    return str(row["index"])


def list_of(cell: Cell) -> list[str]:
    """Return the items of a list literal, or the one value of any other cell."""
    if isinstance(cell, list):
        return [str(item) for item in cell]
    text = text_of(cell)
    if "[" in text:
        try:
            with warnings.catch_warnings():  # about backslashes
                warnings.simplefilter("ignore")
                items = ast.literal_eval(text.lstrip(" \t"))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return [text]
        if isinstance(items, list):
            return [str(item) for item in items]
    return [text]


def options_of(row: Row) -> dict[str, str]:
    """Return the texts of a row's options by letter."""
    return {letter: text_of(row[letter]) for letter in OPTIONS if is_given(row, letter)}
