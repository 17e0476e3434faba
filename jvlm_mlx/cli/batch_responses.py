"""The file of answers: JSON Lines, a row as each is finished, to be gone on with after a stop."""

import dataclasses
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from ..config.json_file import parse_json
from ..errors import RequestError
from ..generation.requests import BatchResponse
from .batch_requests import Row

_BEGINNING = re.compile(rb'\{("id": "([^"\\]|\\.)*", )?"row": \d+, "request": "', re.DOTALL)
"""How `AnswerFile.add` begins a line."""
_EXAMPLE = rb'{"id": "\\", "row": 1, "request": "'


class AnswerFile:
    """Appends answers, and knows which rows have one.

    Each answer is one line, written in one piece and handed to the operating system at once.
    So what is there after the program was killed are whole answers, and perhaps the beginning
    of one, which is cut off when the file is opened again.

    Args:
        path: of the file; it need not exist.
        retry_errors: whether errors are dropped from the file, so that their rows are asked
            again.

    Raises:
        RequestError: the file cannot be written or holds something else.
    """

    def __init__(self, path: Path, *, retry_errors: bool = False) -> None:
        self._path = path
        self._done: dict[str | int, str] = {}
        """Digest of the question, by the row's key."""
        self._failed: set[str | int] = set()
        """Keys of rows that have an error."""
        try:
            # Of a pipe or a terminal nothing can be read back; opening one may wait forever.
            if path.exists() and not path.is_file():
                raise RequestError(f"{path} is no regular file: choose another output file")
            kept, changed = self._read(retry_errors)
            if changed:
                self._replace(kept)
            self._file: BinaryIO = path.open("ab")
        except OSError as error:
            raise self._not_written(error) from error

    def has(self, row: Row, digest: str) -> bool:
        """Return whether a row has its answer.

        Raises:
            RequestError: the file has an answer to another question under the same key.
        """
        found = self._done.get(row.key)
        if found is not None and found != digest:
            raise RequestError(
                f"{self._path} has an answer for row {row.key!r} to another question or with other"
                " settings: choose another output file, or remove this one"
            )
        return found is not None

    def has_error(self, row: Row) -> bool:
        """Return whether what a row has is an error, read when the file was opened."""
        return row.key in self._failed

    def add(self, row: Row, digest: str, answer: BatchResponse) -> None:
        """Write the answer of a row.

        Raises:
            RequestError: the disk is full, or the like.
        """
        content: dict[str, Any] = {"row": row.number, "request": digest}
        if row.key != row.number:
            content = {"id": row.key, **content}
        if answer.result is None:
            content["error"] = answer.error
        else:
            content |= dataclasses.asdict(answer.result)
        line = json.dumps(content, ensure_ascii=False) + "\n"
        try:
            self._file.write(line.encode("utf-8", "replace"))
            self._file.flush()
        except OSError as error:
            raise self._not_written(error) from error

    def __enter__(self) -> "AnswerFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._file.close()
        except OSError as unwritten:
            # Closing tries once more to write what a full disk did not take. What was said
            # about that first is what the user should read.
            if kind is None:
                raise self._not_written(unwritten) from unwritten

    def _not_written(self, error: OSError) -> RequestError:
        return RequestError(f"{self._path} cannot be written: {error.strerror or error}")

    def _read(self, retry_errors: bool) -> tuple[list[bytes], bool]:
        """Read what is there: lines to keep, and whether they are not the whole file."""
        if not self._path.exists():
            return [], False
        lines = self._path.read_bytes().splitlines(keepends=True)
        kept = []
        for number, line in enumerate(lines, 1):
            content = _parse(line)
            if content is None and number == len(lines) and _is_half_written(line):
                break  # the answer that was being written when the program was stopped
            if content is None:
                raise RequestError(
                    f"line {number} of {self._path} is no answer of this command:"
                    " choose another output file"
                )
            if "error" in content and retry_errors:
                continue
            key = content.get("id", content["row"])
            self._done[key] = content["request"]
            if "error" in content:
                self._failed.add(key)
            kept.append(line if line.endswith(b"\n") else line + b"\n")
        return kept, kept != lines

    def _replace(self, lines: Iterable[bytes]) -> None:
        target = self._path.resolve()  # a link to the file stays a link
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        with temporary.open("wb") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        content = parse_json(line)
    except ValueError:
        return None
    if (
        isinstance(content, dict)
        and isinstance(content.get("row"), int)
        and isinstance(content.get("request"), str)
        and isinstance(content.get("id", ""), str)
    ):
        return content
    return None


def _is_half_written(line: bytes) -> bool:
    """Return whether a line is the beginning of an answer.

    A file that someone named by mistake may also end without a newline, and must not lose its
    last line: so only what some rest of `_EXAMPLE` makes the beginning of an answer is one.
    """
    try:
        parse_json(line)
    except ValueError:
        rests = (_EXAMPLE[start:] for start in range(len(_EXAMPLE), -1, -1))
        return not line.endswith(b"\n") and any(_BEGINNING.match(line + rest) for rest in rests)
    return False
