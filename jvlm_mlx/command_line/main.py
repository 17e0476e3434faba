"""`jvlm VERB`, and the same verbs as `python -m jvlm_mlx.VERB`."""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import JvlmError
from ..version import __version__

EXIT_OK, EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True)
class Verb:
    """One subcommand."""

    module: str
    """Module of this package with `add_arguments(parser)` and `run(arguments) -> exit code`."""
    summary: str


VERBS = {
    "generate": Verb("generate", "answer a question about pictures"),
    "chat": Verb("chat", "talk about pictures"),
    "batch": Verb("batch", "answer a file of questions"),
    "doctor": Verb("doctor", "check this machine: chip, kernels, equality, speed"),
    "train": Verb("train", "train a model, or adapters for one, on your own rows"),
    "fuse": Verb("fuse", "make one checkpoint of a model and its adapters"),
    "demo": Verb("demo", "draw a picture for the model that comes with the package"),
    "convert": Verb("convert", "convert a checkpoint, verify a conversion, inspect a file"),
}


class _HelpFormatter(argparse.HelpFormatter):
    """Shows the default of a flag where it says something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, [], True, False, argparse.SUPPRESS):
            return action.help
        return f"{action.help} (default: %(default)s)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `jvlm` and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="jvlm", description="Jina-VLM on Apple Silicon: pictures and questions in, text out."
    )
    parser.add_argument("--version", action="version", version=f"jvlm-mlx {__version__}")
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        subparsers.add_parser(name, help=verb.summary, add_help=False)
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Only the verb is read here; its own parser reads the rest.
    known, _ = parser.parse_known_args(given[:1])
    return run_verb(known.verb, given[1:], prog=f"jvlm {known.verb}")


def run_verb(name: str, arguments: Sequence[str] | None = None, *, prog: str | None = None) -> int:
    """Run one verb and return its exit code.

    A user's mistake is one line on standard error and exit code 1 (2 for flags that do not
    exist); Ctrl-C is 130; a reader of the output that went away, like `head`, is no error.
    """
    verb = VERBS[name]
    module = importlib.import_module(f".{verb.module}", __package__)
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
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Python flushes standard output once more at exit, into the same closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    finally:
        logger.removeHandler(handler)
