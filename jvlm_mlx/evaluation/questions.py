"""A benchmark's TSV file: checked from end to end first, then read question by question.

A file may hold gigabytes of base64 images. Held in memory are the byte offset and the index of each
row; cells and images are read again when they are needed.
"""

import base64
import binascii
import hashlib
import random
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import DataError, JvlmError
from ..files import reason
from .benchmarks import Benchmark
from .cells import (
    OPTIONS,
    ColumnType,
    Row,
    TsvRow,
    is_given,
    list_of,
    options_of,
    read_tsv,
    text_of,
    untyped,
)
from .prediction_files import IMAGE_COLUMN, column_name
from .scoring import ROTATION, incomplete_pairs, missing_rotations, needed_columns

ImageSource = bytes | Path
"""An image: its encoded file, or where that is."""

_MAX_REFERENCE = 64
"""An image cell of at most this many characters is the index of the row that has the image."""
_MAX_PROBLEMS = 20
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}", re.ASCII)
_SPACE = re.compile(r"\s+")


class QuestionFile:
    """The questions of a TSV file.

    Args:
        path: of the file.
        benchmark: what the questions are of.
        image_root: folder to which paths in column `image_path` are relative; the file's own
            unless given.
        check_image: called with each image when the file is checked; raises a `JvlmError`.
        allow_missing_rotations: whether circular questions may lack rotations, which then count
            as right.

    Raises:
        DataError: the file cannot be used. Every problem is named by line and column.
    """

    def __init__(
        self,
        path: Path,
        benchmark: Benchmark,
        *,
        image_root: Path | None = None,
        check_image: Callable[[ImageSource], None] | None = None,
        allow_missing_rotations: bool = False,
    ) -> None:
        self.path, self.benchmark = path, benchmark
        self.without_image = 0
        """Rows that were left out because they have no image, as in VLMEvalKit."""
        self._image_root = image_root or path.parent
        self._check_image = check_image
        self._offsets: list[int] = []
        self._lines: list[int] = []
        self._indices: list[str] = []
        self._row_of: dict[str, int] = {}
        self._references: dict[int, str] = {}
        """Indices of the rows whose image a row takes."""
        self._image_digests: list[list[str]] = []
        self._problems: list[str] = []
        self._number_of_problems = 0
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise DataError(f"{path} cannot be read: {reason(error)}") from error
        try:
            self._scan(allow_missing_rotations)
        except BaseException:
            self._file.close()
            raise

    def __len__(self) -> int:
        return len(self._offsets)

    def row(self, number: int) -> Row:
        """Return the cells of a question, without its images."""
        cells = self._cells(number)
        return {
            name: self._types[name].cell(cells[column])
            for name, column in self._columns.items()
            if name != IMAGE_COLUMN
        }

    def images(self, number: int) -> list[ImageSource]:
        """Return the images of a question, in order."""
        cells = self._cells(number)
        place = f"{self.path}, line {self._lines[number]}"
        if self._has(cells, IMAGE_COLUMN):
            cell = cells[self._columns[IMAGE_COLUMN]]
            if len(cell) <= _MAX_REFERENCE:
                cell = self._cells(self._row_of[cell])[self._columns[IMAGE_COLUMN]]
            try:
                return [_decoded(text) for text in _image_texts(cell)]
            except ValueError as error:
                raise DataError(f"{place}, column {IMAGE_COLUMN}: {error}") from None
        return [self._image_root / name for name in self._image_paths(cells)]

    def image_digests(self, number: int) -> list[str]:
        """Return what tells each image of a question from others: its digest, or its path."""
        number = self._row_of[self._references[number]] if number in self._references else number
        return self._image_digests[number]

    def sample(self, limit: int | None, seed: int) -> list[int]:
        """Return the numbers of all questions, or of about `limit` drawn at random, in order.

        Rotations of a circular question, and the two questions of an image of MME, stay together.
        """
        everything = range(len(self))
        if limit is None or limit >= len(self):
            return list(everything)
        groups: dict[object, list[int]] = defaultdict(list)
        for number in everything:
            groups[self._group(number)].append(number)
        shuffled = list(groups.values())
        random.Random(seed).shuffle(shuffled)
        chosen: list[int] = []
        for group in shuffled:
            if chosen and len(chosen) + len(group) > limit:
                break
            chosen.extend(group)
        return sorted(chosen)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "QuestionFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _group(self, number: int) -> object:
        if self.benchmark.circular:
            return int(self._indices[number]) % ROTATION
        if self.benchmark.totals == "mme":
            row = self.row(number)
            return row.get("category"), row.get("image_path")
        return number

    def _scan(self, allow_missing_rotations: bool) -> None:
        rows = read_tsv(self._file, self.path)
        header = next(rows, None)
        if header is None:
            raise DataError(f"{self.path} is empty")
        self._columns = self._header(header.cells)
        self._types = {name: ColumnType() for name in self._columns if name != IMAGE_COLUMN}
        grouped: list[Row] = []
        for row in rows:
            if len(row.cells) > len(header.cells):
                self._problem(
                    row.line, None, f"{len(row.cells)} cells under {len(header.cells)} columns"
                )
                continue
            row.cells.extend([""] * (len(header.cells) - len(row.cells)))
            self._check_row(row, grouped)
        if not self._offsets and not self._problems:
            raise DataError(f"{self.path} has no questions")
        self._check_references()
        if not self._problems and self.benchmark.circular and not allow_missing_rotations:
            self._group_problems(missing_rotations(grouped))
        if not self._problems and self.benchmark.totals == "mme":
            self._group_problems(incomplete_pairs(grouped))
        if self._problems:
            more = self._number_of_problems - len(self._problems)
            lines = [*self._problems, *([f"and {more} more"] if more else [])]
            raise DataError("\n  ".join([f"{self.path} cannot be used:", *lines]))

    def _header(self, names: Sequence[str]) -> dict[str, int]:
        columns: dict[str, int] = {}
        for number, raw in enumerate(names):
            name = column_name(raw)
            if name in columns:
                raise DataError(f"{self.path}, line 1: column {name} is there twice")
            columns[name] = number
        needed = ["question", *needed_columns(self.benchmark)]
        if self.benchmark.prompt in ("choice", "marked_choice"):
            needed.extend(["A", "B"])
        missing = [name for name in needed if name not in columns]
        if not {IMAGE_COLUMN, "image_path"} & columns.keys():
            missing.append("image (or image_path)")
        if missing:
            raise DataError(
                f"{self.path}, line 1: no column {', '.join(missing)};"
                f" there are {', '.join(list(columns)[:20])}"
            )
        return columns

    def _check_row(self, row: TsvRow, grouped: list[Row]) -> None:
        for name, kind in self._types.items():
            kind.look(row.cells[self._columns[name]])
        cells: Row = {
            name: untyped(row.cells[column])
            for name, column in self._columns.items()
            if name != IMAGE_COLUMN
        }
        if not self._has(row.cells, IMAGE_COLUMN) and not is_given(cells, "image_path"):
            self.without_image += 1
            return
        index = text_of(cells["index"])
        if cells["index"] is None:
            self._problem(row.line, "index", "nothing there")
        elif index in self._row_of:
            first = self._lines[self._row_of[index]]
            self._problem(row.line, "index", f"{index} is that of line {first} too")
        elif self.benchmark.circular and not index.isdecimal():
            self._problem(row.line, "index", f"{index!r} is no whole number")
        self._row_of.setdefault(index, len(self._offsets))
        self._offsets.append(row.offset)
        self._lines.append(row.line)
        self._indices.append(index)
        self._check_options(row.line, cells)
        self._image_digests.append(self._check_images(row))
        if self.benchmark.circular or self.benchmark.totals == "mme":
            kept = ("index", "category", "image_path", *OPTIONS)
            grouped.append({name: cells[name] for name in kept if is_given(cells, name)})

    def _check_options(self, line: int, cells: Row) -> None:
        if not is_given(cells, "question"):
            self._problem(line, "question", "nothing there")
        if self.benchmark.scorer == "yes_no" and text_of(cells["answer"]) not in ("Yes", "No"):
            self._problem(line, "answer", f"{text_of(cells['answer'])!r} is neither Yes nor No")
        if self.benchmark.scorer == "choice":
            options = options_of(cells)
            answer = text_of(cells["answer"])
            if answer not in options:
                self._problem(
                    line, "answer", f"{answer!r} is none of the options {', '.join(options)}"
                )

    def _check_images(self, row: TsvRow) -> list[str]:
        """Check the images of a row and return their digests."""
        if not self._has(row.cells, IMAGE_COLUMN):
            names = self._image_paths(row.cells)
            for name in names:
                self._check_one_image(row.line, "image_path", self._image_root / name)
            return names
        cell = row.cells[self._columns[IMAGE_COLUMN]]
        if len(cell) <= _MAX_REFERENCE:
            self._references[len(self._offsets) - 1] = cell  # the row may come later
            return []
        digests = []
        try:
            for text in _image_texts(cell):
                image = _decoded(text)
                self._check_one_image(row.line, IMAGE_COLUMN, image)
                digests.append(hashlib.sha256(image).hexdigest()[:16])
        except ValueError as error:
            self._problem(row.line, IMAGE_COLUMN, str(error))
        return digests

    def _check_one_image(self, line: int, column: str, image: ImageSource) -> None:
        if isinstance(image, Path) and not image.is_file():
            self._problem(line, column, f"{image} does not exist")
        elif self._check_image:
            try:
                self._check_image(image)
            except JvlmError as error:
                self._problem(line, column, str(error))

    def _check_references(self) -> None:
        """Check image cells that are the index of another row, once all rows are known."""
        for number, index in self._references.items():
            line = self._lines[number]
            if index not in self._row_of:
                self._problem(line, IMAGE_COLUMN, f"{index!r} is neither base64 nor an index")
            elif self._row_of[index] in self._references:
                self._problem(line, IMAGE_COLUMN, f"row {index} has no image of its own")

    def _group_problems(self, problems: Sequence[str]) -> None:
        for problem in problems:
            match = re.match(r"question (\d+)", problem)
            row = self._row_of.get(match[1]) if match else None
            self._problem(self._lines[row] if row is not None else None, "index", problem)

    def _problem(self, line: int | None, column: str | None, what: str) -> None:
        self._number_of_problems += 1
        if len(self._problems) < _MAX_PROBLEMS:
            places = (f"line {line}" if line else None, f"column {column}" if column else None)
            self._problems.append(f"{', '.join(filter(None, places))}: {what}")

    def _cells(self, number: int) -> list[str]:
        row = next(read_tsv(self._file, self.path, self._offsets[number]))
        return row.cells + [""] * (max(self._columns.values()) + 1 - len(row.cells))

    def _has(self, cells: Sequence[str], column: str) -> bool:
        return column in self._columns and untyped(cells[self._columns[column]]) is not None

    def _image_paths(self, cells: Sequence[str]) -> list[str]:
        return list_of(cells[self._columns["image_path"]])


def _image_texts(cell: str) -> list[str]:
    """Return the base64 texts of an image cell: one, or those of a list literal."""
    cell = cell.strip()
    if not (cell.startswith("[") and cell.endswith("]")):
        return [cell]
    # Neither commas nor quotes occur in base64, so a list needs no parser that copies it.
    texts = [text.strip().strip("'\"") for text in cell[1:-1].split(",")]
    return [text for text in texts if text]


def _decoded(text: str) -> bytes:
    if not _BASE64.fullmatch(text):
        text = _SPACE.sub("", text)
        match = _BASE64.match(text)
        place = match.end() if match else 0
        if place < len(text):
            raise ValueError(f"broken base64: {text[place]!r} at character {place + 1}")
    try:
        return base64.b64decode(text)
    except binascii.Error as error:
        raise ValueError(f"broken base64: {str(error).lower()}") from None
