"""Rows and cells of a question file as pandas reads them: quotes, missing values, types, lists."""

import ast
import csv
import re
import string
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import DataError

_END = "\x1f\n"
"""A last line of the reader's own: if it is not read as a row, a quote was never closed."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

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


@dataclass(frozen=True)
class TsvRow:
    """One row of a file."""

    line: int
    """The line it begins on, from 1."""
    offset: int
    """The byte it begins at."""
    cells: list[str]


class _Lines:
    """The lines of a file as text; counts what the CSV reader has taken."""

    def __init__(self, file: BinaryIO, path: Path, offset: int) -> None:
        self._file, self._path = file, path
        self.offset, self.taken = offset, 0
        file.seek(offset)

    def __iter__(self) -> Iterator[str]:
        for raw in self._file:
            self.taken += 1
            self.offset += len(raw)
            if self.offset == len(raw):
                raw = raw.removeprefix(_BYTE_ORDER_MARK)
            try:
                text = raw.decode()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{self._path}, line {self.taken}: not UTF-8 at byte {error.start} of the line"
                ) from None
            yield text if text.endswith("\n") else text + "\n"
        yield _END


def read_tsv(file: BinaryIO, path: Path, offset: int = 0) -> Iterator[TsvRow]:
    """Yield the rows of a tab-separated file from a byte on; empty lines are skipped.

    Quoting is that of `pandas.read_csv(sep="\\t")`: a cell that begins with `"` ends at the next
    single `"` and may hold tabs and line breaks; anywhere else the mark is an ordinary character.
    Only one row is held at a time, so a file may be larger than memory; at most one is read ahead
    of what is asked for. Line numbers count from `offset`.

    Raises:
        DataError: the file is not UTF-8, or its quotes or line breaks cannot be read.
    """
    csv.field_size_limit(sys.maxsize)  # 128 KB unless said otherwise: a photo is larger
    lines = _Lines(file, path, offset)
    reader = csv.reader(iter(lines), delimiter="\t")
    while True:
        line, start = lines.taken + 1, lines.offset
        try:
            cells = next(reader)
        except csv.Error as error:
            raise DataError(f"{path}, line {line}: {error}") from None
        if cells == [_END.strip("\n")]:
            return
        if cells and cells[-1].endswith(_END):
            raise DataError(f'{path}, line {line}: a cell begins with " and is never closed')
        if cells:
            yield TsvRow(line, start, cells)
