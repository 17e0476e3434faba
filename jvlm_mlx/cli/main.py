"""`jvlm SUBCOMMAND`, and the same subcommands as `python -m jvlm_mlx.SUBCOMMAND`."""

import importlib
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from .. import startup
from ..errors import JvlmError, explained
from ..version import __version__
from .formatting import printable
from .parser import CommandParser
from .standard_streams import EXIT_ERROR as EXIT_ERROR
from .standard_streams import EXIT_INTERRUPTED as EXIT_INTERRUPTED
from .standard_streams import EXIT_OK as EXIT_OK
from .standard_streams import standard_input, write_through


@dataclass(frozen=True)
class Subcommand:
    """One subcommand."""

    module: str
    """Module of this package with `add_arguments(parser)` and `run(arguments) -> exit code`."""
    summary: str


SUBCOMMANDS = {
    "generate": Subcommand("generate", "answer a question about images"),
    "chat": Subcommand("chat", "talk about images"),
    "window": Subcommand("window", "ask about an image in a window"),
    "batch": Subcommand("batch", "answer a file of requests, or one question about many images"),
    "read": Subcommand("read", "transcribe pages to Markdown"),
    "evaluate": Subcommand("evaluate", "run the paper's benchmarks, score, compare runs"),
    "explain": Subcommand("explain", "show what an answer looked at, as an image"),
    "serve": Subcommand("serve", "answer other programs: an OpenAI-compatible API and a page"),
    "doctor": Subcommand("doctor", "check this machine: chip, kernels, equality, speed"),
    "train": Subcommand("train", "train a model, or adapters for one, on your own examples"),
    "fuse": Subcommand("fuse", "make one checkpoint of a model and its adapters"),
    "demo": Subcommand("demo.__main__", "draw an image for the model that comes with the package"),
    "convert": Subcommand("convert", "convert a checkpoint, verify a conversion, inspect a file"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `jvlm` and return its exit code."""
    return write_through(lambda: _main(arguments))


def main_convert() -> int:
    """Run `jvlm-convert` and return its exit code."""
    return run_subcommand("convert", prog="jvlm-convert")


def _main(arguments: Sequence[str] | None) -> int:
    parser = CommandParser(
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
    with standard_input():
        return write_through(lambda: _run_subcommand(name, arguments, prog))


def _run_subcommand(name: str, arguments: Sequence[str] | None, prog: str | None) -> int:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("jvlm_mlx")
    logger.addHandler(handler)
    parser = CommandParser(prog=prog or f"python -m jvlm_mlx.{name}")
    try:
        # Imported here: the other subcommands are not needed.
        module = importlib.import_module(f"jvlm_mlx.{SUBCOMMANDS[name].module}")
        parser.description = (module.__doc__ or "").split("\n\n")[0]
        module.add_arguments(parser)
        parsed = parser.parse_args(arguments)
        startup.raise_again()  # caught below, and where work is to be finished or undone
        return int(module.run(parsed))
    except (JvlmError, RuntimeError, MemoryError) as error:
        shown = explained(error)
        if not isinstance(shown, JvlmError):
            raise
        print(f"error: {printable(parser.name_flags(str(shown)))}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        # One that came through `exec`, as of a dataclass being imported, counts as unhandled:
        # Python would end itself with the signal. Executing anything makes it forget.
        exec("")
        print(file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        logger.removeHandler(handler)
