"""`jvlm SUBCOMMAND`, and the same subcommands as `python -m jvlm_mlx.SUBCOMMAND`."""

import argparse
import errno
import importlib
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from ..errors import JvlmError
from ..version import __version__
from .formatting import printable

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_INTERRUPTED = 130
"""After Ctrl-C, as in shells. argparse itself ends with 2 for unknown flags."""

_OF_FULL_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@dataclass(frozen=True)
class Subcommand:
    """One subcommand."""

    module: str
    """Module of this package with `add_arguments(parser)` and `run(arguments) -> exit code`."""
    summary: str


SUBCOMMANDS = {
    "generate": Subcommand("generate", "answer a question about images"),
    "chat": Subcommand("chat", "talk about images"),
    "batch": Subcommand("batch", "answer a file of requests, or one question about many images"),
    "read": Subcommand("read", "transcribe pages to Markdown"),
    "evaluate": Subcommand("evaluate", "run the paper's benchmarks, score, compare runs"),
    "explain": Subcommand("explain", "show what an answer looked at, as an image"),
    "serve": Subcommand("serve", "answer other programs: an OpenAI-compatible API and a page"),
    "doctor": Subcommand("doctor", "check this machine: chip, kernels, equality, speed"),
    "train": Subcommand("train", "train a model, or adapters for one, on your own rows"),
    "fuse": Subcommand("fuse", "make one checkpoint of a model and its adapters"),
    "demo": Subcommand("demo.__main__", "draw an image for the model that comes with the package"),
    "convert": Subcommand("convert", "convert a checkpoint, verify a conversion, inspect a file"),
}


class _HelpFormatter(argparse.HelpFormatter):
    """Shows the default of a flag where it says something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, [], True, False, argparse.SUPPRESS):
            return action.help
        return f"{action.help} (default: %(default)s)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `jvlm` and return its exit code."""
    return _with_output(lambda: _main(arguments))


def main_convert() -> int:
    """Run `jvlm-convert` and return its exit code."""
    return run_subcommand("convert", prog="jvlm-convert")


def _main(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="jvlm", description="Jina-VLM on Apple Silicon: images and questions in, text out."
    )
    parser.add_argument("--version", action="version", version=f"jvlm-mlx {__version__}")
    subparsers = parser.add_subparsers(dest="subcommand", metavar="SUBCOMMAND", required=True)
    for name, subcommand in SUBCOMMANDS.items():
        subparsers.add_parser(name, help=subcommand.summary, add_help=False)
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Only the subcommand is read here; its own parser reads the rest.
    known, _ = parser.parse_known_args(given[:1])
    return run_subcommand(known.subcommand, given[1:], prog=f"jvlm {known.subcommand}")


def run_subcommand(
    name: str, arguments: Sequence[str] | None = None, *, prog: str | None = None
) -> int:
    """Run one subcommand and return its exit code.

    A user's mistake is one line on standard error and exit code 1 (2 for flags that do not
    exist); Ctrl-C is 130; a reader of the output that went away, like `head`, is no error.
    """
    with _input():
        return _with_output(lambda: _run_subcommand(name, arguments, prog))


def _run_subcommand(name: str, arguments: Sequence[str] | None, prog: str | None) -> int:
    subcommand = SUBCOMMANDS[name]
    module = importlib.import_module(f"jvlm_mlx.{subcommand.module}")
    parser = argparse.ArgumentParser(
        prog=prog or f"python -m jvlm_mlx.{name}",
        description=(module.__doc__ or "").split("\n\n")[0],
        formatter_class=_HelpFormatter,
    )
    module.add_arguments(parser)
    options = parser.parse_args(arguments)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("jvlm_mlx")
    logger.addHandler(handler)
    try:
        return int(module.run(options))
    except JvlmError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        logger.removeHandler(handler)


@contextmanager
def _input() -> Iterator[None]:
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


def _with_output(run: Callable[[], int]) -> int:
    """Run, and make sure that what was printed has been written; return the exit code."""
    code = EXIT_OK
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
