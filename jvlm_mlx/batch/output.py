"""The file of answers: JSON Lines, a row as each is finished, to be gone on with after a stop."""

import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import RequestError
from .request import BatchAnswer
from .rows import Row


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
        try:
            kept, changed = self._read(retry_errors)
            if changed:
                self._replace(kept)
            self._file: BinaryIO = path.open("ab")
        except OSError as error:
            raise RequestError(f"{path} cannot be written: {error.strerror or error}") from error

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

    def add(self, row: Row, digest: str, answer: BatchAnswer) -> None:
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
            raise RequestError(
                f"{self._path} cannot be written: {error.strerror or error}"
            ) from error

    def __enter__(self) -> "AnswerFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _read(self, retry_errors: bool) -> tuple[list[bytes], bool]:
        """Read what is there: lines to keep, and whether they are not the whole file."""
        if not self._path.exists():
            return [], False
        lines = self._path.read_bytes().splitlines(keepends=True)
        kept = []
        for number, line in enumerate(lines, 1):
            content = _parse(line)
            if content is None and number == len(lines) and not line.endswith(b"\n"):
                break  # the answer that was being written when the program was stopped
            if content is None:
                raise RequestError(
                    f"line {number} of {self._path} is no answer of this command:"
                    " choose another output file"
                )
            if "error" in content and retry_errors:
                continue
            self._done[content.get("id", content["row"])] = content["request"]
            kept.append(line if line.endswith(b"\n") else line + b"\n")
        return kept, kept != lines

    def _replace(self, lines: Iterable[bytes]) -> None:
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        with temporary.open("wb") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(line)
    except ValueError:
        return None
    if not isinstance(content, dict) or not {"row", "request"} <= content.keys():
        return None
    return content
