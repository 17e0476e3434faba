"""Talk about images.

Answers go to standard output; everything else goes to standard error.
"""

import argparse
import sys
from pathlib import Path

from .cli.arguments import (
    add_cache_argument,
    add_generation_arguments,
    add_model_arguments,
    caches,
    given_options,
    load_model,
)
from .cli.chat_commands import COMMANDS, Conversation, describe_session
from .cli.chat_lines import line_editing
from .cli.chat_terminal import run_console
from .cli.formatting import printable
from .cli.main import EXIT_OK
from .cli.progress_bars import ProgressBars, wants_progress
from .errors import RequestError, SessionError
from .files import local_path
from .generation.memory import keep_wired
from .generation.session import ChatSession


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this subcommand."""
    parser.add_argument(
        "-i", "--image", action="append", default=[], metavar="IMAGE",
        help="path, URL or data URI for the first question; may be repeated; on a Mac also"
        " clipboard:, screenshot: (chosen with the mouse) or screenshot:screen",
    )  # fmt: skip
    parser.add_argument("--system", help="a system message in front")
    parser.add_argument("--load", metavar="FILE", help="resume a saved conversation")
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
    if "-" in arguments.image:
        raise RequestError("--image -: standard input is the conversation; give a file")
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
            print(printable(conversation.add_images(arguments.image)), file=sys.stderr)
        if sys.stdin.isatty():
            print("/help lists commands", file=sys.stderr)
        with keep_wired(options.get("wired_limit")), line_editing(arguments.history, COMMANDS):
            run_console(conversation, bars.show, bars.close)
    return EXIT_OK


if __name__ == "__main__":
    # The module that the package has imported does the work, not this second copy of it.
    from .cli.main import run_subcommand

    sys.exit(run_subcommand("chat"))
