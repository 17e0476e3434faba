"""Predictions made anywhere: TSV, JSON Lines, Excel and Parquet files as lists of rows."""

import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..config.json_file import parse_json
from ..errors import DataError
from ..files import reason
from .cells import OPTIONS, Cell, ColumnType, Row, read_tsv

IMAGE_COLUMN = "image"
PREDICTION = "prediction"
_SHEET = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_ESCAPED = re.compile(r"_x([0-9A-Fa-f]{4})_")
_MAX_SHEET_BYTES = 1 << 30

Places = list[str]
"""Where each row is, as messages name it: `line 7`, `row 7`."""


def read_rows(path: Path) -> tuple[list[Row], Places]:
    """Return the rows of a file and where they are. Images are left out.

    In TSV and Excel files, numbers and missing values are found as pandas finds them, except in
    column `prediction`, whose text is taken as it is.

    Raises:
        DataError: the file cannot be read, or is of another kind.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: choose a file that ends in {', '.join(_READERS)}")
    try:
        rows, places = reader(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason(error)}") from error
    if not rows:
        raise DataError(f"{path} has no rows")
    return rows, places


def column_name(name: str) -> str:
    """Return the name of a column: lower case, except for the letters of options."""
    return name if name in OPTIONS else name.lower()


def _read_tsv(path: Path) -> tuple[list[Row], Places]:
    with path.open("rb") as file:
        rows = read_tsv(file, path)
        header = next(rows, None)
        if header is None:
            return [], []
        kept = [n for n, name in enumerate(header.cells) if column_name(name) != IMAGE_COLUMN]
        cells, places = [], []
        for row in rows:
            if len(row.cells) > len(header.cells):
                raise DataError(
                    f"{path}, line {row.line}: {len(row.cells)} cells under"
                    f" {len(header.cells)} columns"
                )
            row.cells.extend([""] * (len(header.cells) - len(row.cells)))
            cells.append([row.cells[n] for n in kept])
            places.append(f"line {row.line}")
    return _typed([header.cells[n] for n in kept], cells), places


def _typed(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[Row]:
    names = [column_name(name) for name in names]
    types = [ColumnType() for _ in names]
    for row in rows:
        for kind, cell in zip(types, row, strict=True):
            kind.look(cell)
    return [
        {
            name: cell if name == PREDICTION else kind.cell(cell)
            for name, kind, cell in zip(names, types, row, strict=True)
        }
        for row in rows
    ]


def _read_json_lines(path: Path) -> tuple[list[Row], Places]:
    rows: list[Row] = []
    places = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                content = parse_json(line)
            except ValueError as error:
                raise DataError(f"{path}, line {number}: not JSON: {error}") from None
            rows.append(_plain_row(content, f"{path}, line {number}"))
            places.append(f"line {number}")
    return rows, places


def _plain_row(content: Any, place: str) -> Row:
    if not isinstance(content, dict):
        raise DataError(f"{place}: not an object with names and values")
    row: dict[str, Cell] = {}
    for name, value in content.items():
        row[column_name(name)] = value
    row.pop(IMAGE_COLUMN, None)
    return row


def _read_excel(path: Path) -> tuple[list[Row], Places]:
    try:
        with zipfile.ZipFile(path) as archive:
            table = list(_sheet_rows(archive, path))
    except (zipfile.BadZipFile, ElementTree.ParseError, KeyError, IndexError, ValueError) as error:
        raise DataError(f"{path} is no Excel file that can be read: {error}") from error
    if not table:
        return [], []
    header = table[0][1]
    width = len(header)
    cells = [row[:width] + [""] * (width - len(row)) for _, row in table[1:]]
    kept = [n for n, name in enumerate(header) if column_name(name) != IMAGE_COLUMN]
    rows = _typed([header[n] for n in kept], [[row[n] for n in kept] for row in cells])
    return rows, [f"row {number}" for number, _ in table[1:]]


def _sheet_rows(archive: zipfile.ZipFile, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield number and cells of each row of the first sheet."""
    names = archive.namelist()
    sheets = sorted(name for name in names if re.fullmatch(r"xl/worksheets/sheet\d+\.xml", name))
    if not sheets:
        raise DataError(f"{path} is no Excel file: it has no sheet")
    sheet = "xl/worksheets/sheet1.xml" if "xl/worksheets/sheet1.xml" in sheets else sheets[0]
    if archive.getinfo(sheet).file_size > _MAX_SHEET_BYTES:
        raise DataError(f"{path}: the sheet is larger than 1 GB; save it as TSV")
    texts: list[str] = []
    if "xl/sharedStrings.xml" in names:
        with archive.open("xl/sharedStrings.xml") as file:
            for _, element in ElementTree.iterparse(file):
                if element.tag == f"{_SHEET}si":
                    texts.append(_text(element))
                    element.clear()
    with archive.open(sheet) as file:
        number = 0
        for _, element in ElementTree.iterparse(file):
            if element.tag == f"{_SHEET}row":
                number = int(element.get("r", number + 1))
                cells = _cells(element, texts)
                if any(cells):
                    yield number, cells
                element.clear()


def _cells(row: ElementTree.Element, texts: Sequence[str]) -> list[str]:
    cells: list[str] = []
    for element in row.iter(f"{_SHEET}c"):
        reference = element.get("r")
        if reference:
            column = 0
            for letter in re.sub(r"\d", "", reference):
                column = 26 * column + ord(letter) - ord("A") + 1
            cells.extend([""] * (column - 1 - len(cells)))
        cells.append(_cell(element, texts))
    return cells


def _cell(element: ElementTree.Element, texts: Sequence[str]) -> str:
    kind = element.get("t", "n")
    if kind == "inlineStr":
        inline = element.find(f"{_SHEET}is")
        return "" if inline is None else _text(inline)
    value = element.findtext(f"{_SHEET}v") or ""
    if kind == "s":
        return texts[int(value)] if value else ""
    if kind == "b":
        return str(value == "1")
    if kind == "n" and value:
        number = float(value)
        return str(int(number)) if number.is_integer() else str(number)
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), value)


def _text(element: ElementTree.Element) -> str:
    # The text itself or its formatted runs; phonetic readings are left out.
    parts = (*element.iterfind(f"{_SHEET}t"), *element.iterfind(f"{_SHEET}r/{_SHEET}t"))
    text = "".join(part.text or "" for part in parts)
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), text)


def _read_parquet(path: Path) -> tuple[list[Row], Places]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise DataError(
            f"{path}: Parquet files need pyarrow: pip install pyarrow, or convert it to JSON Lines"
        ) from None
    try:
        table = ParquetFile(path).read()
    except ArrowException as error:
        raise DataError(f"{path} is no Parquet file that can be read: {error}") from error
    rows: list[Row] = [
        {column_name(name): value for name, value in row.items()} for row in table.to_pylist()
    ]
    return rows, [f"row {number}" for number in range(1, len(rows) + 1)]


_READERS: dict[str, Callable[[Path], tuple[list[Row], Places]]] = {
    ".tsv": _read_tsv,
    ".jsonl": _read_json_lines,
    ".xlsx": _read_excel,
    ".parquet": _read_parquet,
}
