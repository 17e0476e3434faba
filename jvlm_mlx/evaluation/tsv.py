"""Tab-separated files row by row, with the line and byte at which each row begins.

Quoting is that of `pandas.read_csv(sep="\\t")`: a cell that begins with `"` ends at the next single
`"` and may hold tabs and line breaks; anywhere else the mark is an ordinary character. Only one row
is held at a time, so a file may be larger than memory.
"""

import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..errors import DataError

_END = "\x1f\n"
"""A last line of the reader's own: if it is not read as a row, a quote was never closed."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


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
    """Yield the rows of a file from a byte on; empty lines are skipped.

    Line numbers count from `offset`. At most one row is read ahead of what is asked for.

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
