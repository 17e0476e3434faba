"""Standard input that is absent or no text; standard output that is full, closed or not UTF-8."""

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from ..errors import RequestError
from ..startup import EXIT_INTERRUPTED as EXIT_INTERRUPTED

EXIT_OK = 0
EXIT_ERROR = 1
"""argparse itself ends with 2 for unknown flags."""

_OF_FULL_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@contextmanager
def standard_input() -> Iterator[None]:
    """Let bytes that are no text arrive as lone surrogates; without standard input, have none."""
    if sys.stdin is None:  # closed by whoever started this process
        with Path(os.devnull).open(encoding="utf-8") as sys.stdin:
            try:
                yield
            finally:
                sys.stdin = None
        return
    if isinstance(sys.stdin, io.TextIOWrapper):
        with suppress(io.UnsupportedOperation):  # something has been read already
            sys.stdin.reconfigure(errors="surrogateescape")
    yield


def read_bytes(flag: str) -> bytes:
    """Return what comes through standard input, an image or a document, as `flag` asks for.

    Raises:
        RequestError: nothing comes.
    """
    if sys.stdin.isatty():
        raise RequestError(f"{flag}: standard input is a terminal; send an image, or name a file")
    if not (data := sys.stdin.buffer.read()):
        raise RequestError(f"{flag}: standard input is empty")
    return data


def write_through(run: Callable[[], int]) -> int:
    """Run, and make sure that what was printed has been written; return the exit code."""
    code = EXIT_OK
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Text that its encoding lacks, Chinese in Latin-1 say, is escaped rather than fatal.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            code = run()
        except SystemExit:
            _flush(sys.stdout)  # the help, for one
            raise
        _flush(sys.stdout)
        return code
    except BrokenPipeError:
        for stream in (sys.stdout, sys.stderr):
            if _fails(stream):
                _close(stream)
        return code
    except OSError as error:
        reason = error.strerror or error
        if _fails(sys.stdout):
            _close(sys.stdout)
            print(f"error: cannot write standard output: {reason}", file=sys.stderr)
        elif _is_unbuffered() and error.errno in _OF_FULL_DISKS:
            print(f"error: {reason}", file=sys.stderr)
        elif error.filename is not None:
            print(f"error: {error.filename}: {reason}", file=sys.stderr)
        else:
            raise
        return EXIT_ERROR


def _flush(stream: TextIO | None) -> None:
    if stream is not None:
        stream.flush()


def _fails(stream: TextIO | None) -> bool:
    """Whether a stream takes nothing more: what it did not take then fails again."""
    try:
        _flush(stream)
    except OSError:
        return True
    return False


def _is_unbuffered() -> bool:
    """Whether what standard output did not take is gone, so that nothing can fail again."""
    return isinstance(getattr(sys.stdout, "buffer", None), io.RawIOBase)


def _close(stream: TextIO) -> None:
    """Let what is left go nowhere: Python flushes once more at exit, and would complain."""
    with suppress(io.UnsupportedOperation):  # it is no file
        descriptor = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
