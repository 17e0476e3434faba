"""Where the responses of a batch go: JSON Lines, written as each is finished and resumed from.

Tables (`.csv`) and documents (`.md`) are made of such a file, which lies beside them. Of several
processes that `mlx.launch` started, each writes a file of its own; at the end they are merged.
"""

import csv
import dataclasses
import glob
import io
import json
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, TypeAlias

from ..config.json_file import parse_json, quoted
from ..errors import RequestError
from ..files import atomic_file, output_lock, reason
from ..generation.requests import BatchResponse
from ..process_group import ProcessGroup
from .batch_requests import STANDARD_STREAM, FileRequest

_PREFIX = re.compile(rb'\{("id": "([^"\\]|\\.)*", )?"row": \d+, "request": "', re.DOTALL)
"""How `ResponseFile.add` begins a line."""
_EXAMPLE = rb'{"id": "\\", "row": 1, "request": "'
_COLUMNS = ("id", "text", "error", "finish_reason", "prompt_tokens", "generation_tokens")


Format: TypeAlias = Callable[[list[dict[str, Any]]], bytes]
"""Makes a file of all responses, as they are in the JSON Lines and in the order of requests."""


class _Stored(NamedTuple):
    """One response in a file."""

    key: str | int
    digest: str
    failed: bool
    line: bytes


class ResponseFile:
    """Appends responses, and knows which requests have one.

    Each response is one line, written with one call and flushed at once.
    So what is there after the program was killed are whole responses, and perhaps a prefix
    of one, which is cut off when the file is opened again. Meanwhile no other process can write
    the same output.

    Args:
        output: as the user named it; `-` is standard output, which nothing is resumed from.
        group: the processes that share the work, each with a file of its own; None for one.
        retry_errors: whether errors are dropped from the file, so that their requests are run
            again.
        formats: what makes a table or document of all responses, by suffix; None for `FORMATS`.

    Raises:
        RequestError: the file cannot be written, holds something else, or is in use.
    """

    def __init__(
        self,
        output: Path,
        group: ProcessGroup | None = None,
        *,
        retry_errors: bool = False,
        formats: Mapping[str, Format] | None = None,
    ) -> None:
        self._output = output
        self._group = group
        self._count, self._rank = (group.count, group.rank) if group is not None else (1, 0)
        self._retry_errors = retry_errors
        self._stored: dict[str | int, _Stored] = {}
        """What was there when the file was opened, without the lines."""
        self._stack = ExitStack()
        if output == STANDARD_STREAM:
            if self._count > 1:
                raise RequestError(f"{self._count} processes need an output file, not -")
            self._file: IO[bytes] = sys.stdout.buffer
            return
        self._format = (FORMATS if formats is None else formats).get(output.suffix.lower())
        self._all = output.with_name(f"{output.name}.jsonl") if self._format else output
        """Of all processes."""
        self._own = self._all if self._count == 1 else self._rank_file(self._rank)
        with self._stack:
            try:
                self._open()
            except OSError as error:
                raise self._not_written(error) from error
            self._stack = self._stack.pop_all()

    def _open(self) -> None:
        for path in dict.fromkeys((self._output, self._all, self._own)):
            # Of a pipe or a terminal nothing can be read back; opening one may wait forever.
            if path.exists() and not path.is_file():
                raise RequestError(f"{path} is no regular file: choose another output file")
        if self._format is not None and self._output.exists() and not self._files():
            raise RequestError(
                f"{self._output} is there, but {self._all.name}, which it would be made of, is not:"
                " choose another output file"
            )
        self._stack.enter_context(output_lock(self._own, RequestError))
        if self._count > 1 and self._rank == 0:
            self._stack.enter_context(output_lock(self._all, RequestError))
        here = [stored for path in self._files() for stored in self._read(path)]
        if self._count > 1:
            # Nothing is written before all have read, for they may share a disk.
            here = _parse_lines(self._gather(_join(here)))
        self._stored = {stored.key: stored._replace(line=b"") for stored in here}
        if self._own.exists():
            kept = _join(self._read(self._own))
            if kept != self._own.read_bytes():
                self._write(self._own, kept)
        self._file = self._stack.enter_context(self._own.open("ab"))

    def has(self, request: FileRequest) -> bool:
        """Return whether a request has its response.

        Raises:
            RequestError: the file has a response to another request under the same key.
        """
        found = self._stored.get(request.key)
        if found is not None and found.digest != request.digest:
            raise RequestError(
                f"{self._output} has a response for request {quoted(request.key)} to another"
                " question or with other settings: choose another output file, or remove this one"
            )
        return found is not None

    def has_error(self, request: FileRequest) -> bool:
        """Return whether the response that a request has is an error."""
        return request.key in self._stored and self._stored[request.key].failed

    def add(self, request: FileRequest, response: BatchResponse) -> None:
        """Write the response of a request.

        Raises:
            RequestError: the disk is full, or the like.
        """
        content: dict[str, Any] = {"row": request.number, "request": request.digest}
        if request.key != request.number:
            content = {"id": request.key, **content}
        if response.result is None:
            content["error"] = response.error
        else:
            content |= dataclasses.asdict(response.result)
        try:
            line = json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError:  # half a character, which JSON can only hold escaped
            line = json.dumps(content).encode()
        try:
            self._file.write(line + b"\n")
            self._file.flush()
        except BrokenPipeError:
            raise  # the reader of standard output has gone, which is no error
        except OSError as error:
            raise self._not_written(error) from error

    def finish(self) -> None:
        """Merge what several processes wrote, in the order of the requests, and make a table.

        Raises:
            RequestError: the output cannot be written.
        """
        if self._output == STANDARD_STREAM:
            return
        self._retry_errors = False  # those of this run are results
        rank_files = [path for path in self._files() if path != self._all]
        # All processes do the same here, for each waits for the others.
        if self._count > 1 or rank_files:
            here = [stored for path in self._files() for stored in self._read(path)]
            merged = self._gather(_join(here))
            if self._rank == 0:
                self._write(self._all, _join(_in_order(_parse_lines(merged))))
            self._gather(b"")  # everything is written
            for path in rank_files:
                path.unlink(missing_ok=True)
        if self._format is not None and self._rank == 0:
            responses = [json.loads(stored.line) for stored in _in_order(self._read(self._all))]
            self._write(self._output, self._format(responses))

    def __enter__(self) -> "ResponseFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._stack.close()
        except OSError as unwritten:
            # Closing tries once more to write what a full disk did not take. What was said
            # about that first is what the user should read.
            if kind is None:
                raise self._not_written(unwritten) from unwritten

    def _not_written(self, error: OSError) -> RequestError:
        return RequestError(f"{self._output} cannot be written: {reason(error)}")

    def _gather(self, lines: bytes) -> bytes:
        """Return the lines of all processes, when all have given theirs."""
        return (
            lines if self._group is None else "".join(self._group.gather(lines.decode())).encode()
        )

    def _rank_file(self, rank: int) -> Path:
        return self._all.with_name(f"{self._all.name}.rank{rank}")

    def _files(self) -> list[Path]:
        """Return the files with responses that are on this disk."""
        ranks = self._all.parent.glob(f"{glob.escape(self._all.name)}.rank*")
        return [path for path in (self._all, *sorted(ranks)) if path.exists()]

    def _read(self, path: Path) -> list[_Stored]:
        """Read the whole lines of a file, without errors if they are run again."""
        lines = path.read_bytes().splitlines(keepends=True)
        found = []
        for number, line in enumerate(lines, 1):
            stored = _parse(line)
            if stored is None and number == len(lines) and _is_half_written(line):
                break  # the response that was being written when the program was stopped
            if stored is None:
                raise RequestError(
                    f"line {number} of {path} is no response of this command:"
                    " choose another output file"
                )
            if not (stored.failed and self._retry_errors):
                found.append(stored)
        return found

    def _write(self, path: Path, content: bytes) -> None:
        with atomic_file(path, RequestError) as temporary:
            temporary.write_bytes(content)


def _join(responses: list[_Stored]) -> bytes:
    return b"".join(stored.line for stored in responses)


def _in_order(responses: list[_Stored]) -> list[_Stored]:
    """Sort by request. Of several responses to one, an answer counts rather than an error."""
    best: dict[str | int, _Stored] = {}
    for stored in responses:
        if not stored.failed or best.get(stored.key, stored).failed:
            best[stored.key] = stored
    return sorted(best.values(), key=lambda stored: int(json.loads(stored.line)["row"]))


def _table(responses: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({"id": one["row"], **one} for one in responses)
    return text.getvalue().encode("utf-8", "replace")


def _document(responses: list[dict[str, Any]]) -> bytes:
    parts = []
    for one in responses:
        heading = " ".join(str(one.get("id", one["row"])).split())
        body = f"*failed: {one['error']}*" if "error" in one else one["text"].strip()
        parts.append(f"## {heading}\n\n{body}\n")
    return "\n".join(parts).encode("utf-8", "replace")


FORMATS: Mapping[str, Format] = {".csv": _table, ".md": _document}


def _parse(line: bytes) -> _Stored | None:
    try:
        content = parse_json(line)
    except ValueError:
        return None
    if not (
        isinstance(content, dict)
        and isinstance(content.get("row"), int)
        and isinstance(content.get("request"), str)
        and isinstance(content.get("id", ""), str)
    ):
        return None
    line = line if line.endswith(b"\n") else line + b"\n"
    key: str | int = content["id"] if "id" in content else content["row"]
    return _Stored(key, content["request"], "error" in content, line)


def _parse_lines(lines: bytes) -> list[_Stored]:
    return [stored for line in lines.splitlines(keepends=True) if (stored := _parse(line))]


def _is_half_written(line: bytes) -> bool:
    """Return whether a line is a prefix of a response.

    A file that someone named by mistake may also end without a newline, and must not lose its
    last line: so only what some rest of `_EXAMPLE` makes a prefix of a response is one.
    """
    try:
        parse_json(line)
    except ValueError:
        rests = (_EXAMPLE[start:] for start in range(len(_EXAMPLE), -1, -1))
        return not line.endswith(b"\n") and any(_PREFIX.match(line + rest) for rest in rests)
    return False
