"""Talk about images.

Answers go to standard output; everything else goes to standard error.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .cli.arguments import (
    add_cache_argument,
    add_generation_arguments,
    add_model_arguments,
    caches,
    given_options,
    load_model,
)
from .cli.chat_commands import Conversation, describe_session
from .cli.chat_terminal import run_console
from .cli.main import EXIT_OK
from .cli.progress_bars import ProgressBars, wants_progress
from .errors import RequestError, SessionError
from .files import local_path
from .generation.session import ChatSession


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this subcommand."""
    parser.add_argument(
        "-i", "--image", action="append", default=[], metavar="IMAGE",
        help="path, URL or data URI for the first question; may be repeated",
    )  # fmt: skip
    parser.add_argument("--system", help="a system message in front")
    parser.add_argument("--load", metavar="FILE", help="go on with a saved conversation")
    parser.add_argument(
        "--history", type=Path, metavar="FILE", help="keep what was typed for the next time"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_cache_argument(parser)
    add_model_arguments(parser)
    add_generation_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Talk, and return the exit code."""
    if arguments.load and arguments.system is not None:
        raise RequestError("--load: the saved conversation has its own system message")
    options = given_options(arguments)
    with ProgressBars(wants_progress(arguments.quiet)) as bars:
        model, processor = load_model(arguments, bars)
        shared = caches(arguments)
        if arguments.load:
            file = local_path(arguments.load, SessionError)
            session = ChatSession.load(file, model, processor, caches=shared, **options)
            print(describe_session(session), file=sys.stderr)
        else:
            session = ChatSession(model, processor, arguments.system, caches=shared, **options)
        conversation = Conversation(model, processor, session, options)
        if arguments.image:
            print(conversation.add_images(arguments.image), file=sys.stderr)
        if sys.stdin.isatty():
            print("/help lists commands", file=sys.stderr)
        with _line_editing(arguments.history):
            run_console(conversation, bars.show, bars.close)
    return EXIT_OK


@contextmanager
def _line_editing(history: Path | None) -> Iterator[None]:
    """Make arrow keys and history work where Python has readline."""
    try:
        import readline
    except ImportError:
        yield
        return
    if history is not None:
        try:
            with suppress(FileNotFoundError):
                readline.read_history_file(history)
        except OSError as error:
            # What cannot be read is no history, and must not be written over.
            _warn_of_history(history, "read", error)
            history = None
    try:
        yield
    finally:
        if history is not None:
            try:
                readline.write_history_file(history)
            except OSError as error:
                _warn_of_history(history, "written", error)


def _warn_of_history(history: Path, action: str, error: OSError) -> None:
    print(f"warning: the history {history} cannot be {action}: {error.strerror}", file=sys.stderr)


if __name__ == "__main__":
    # The module that the package has imported does the work, not this second copy of it.
    from .cli.main import run_subcommand

    sys.exit(run_subcommand("chat"))
