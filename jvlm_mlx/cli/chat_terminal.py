"""The loop on the terminal: a question, its answer, the next question."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from types import FrameType

from ..errors import JvlmError
from ..progress import Progress
from .chat_commands import Conversation
from .chat_lines import read_question

PROMPT, CONTINUED = "> ", ". "


def run_console(
    conversation: Conversation, progress: Progress, close_progress: Callable[[], None]
) -> None:
    """Talk until there are no more lines.

    Answers go to standard output, everything else to standard error.

    Args:
        conversation: to go on with.
        progress: told how far images and prompt have come.
        close_progress: called before anything is shown.
    """
    while True:
        try:
            question = read_question(_read_line)
            if question:
                _react(conversation, question, progress, close_progress)
        except EOFError:
            if sys.stdin.isatty():
                print(file=sys.stderr)
            return
        except KeyboardInterrupt:
            close_progress()
            print("\n(Ctrl-D leaves)", file=sys.stderr)
        except JvlmError as error:
            close_progress()
            print(f"error: {error}", file=sys.stderr)


def _read_line(continued: bool) -> str:
    if not sys.stdin.isatty():
        return input()
    return input(CONTINUED if continued else PROMPT)


def _react(
    conversation: Conversation,
    line: str,
    progress: Progress,
    close_progress: Callable[[], None],
) -> None:
    shown = conversation.command(line)
    if shown is not None:
        print(shown, file=sys.stderr)
        return
    session = conversation.session
    before = len(session.history)
    with _stoppable() as cancel:
        answer = session.ask(line, conversation.pending, progress=progress, cancel=cancel)
        try:
            with closing(answer):
                for piece in answer:
                    close_progress()
                    conversation.last_piece = piece
                    print(piece.text, end="", flush=True)
        finally:
            if len(session.history) > before:
                # The images are part of the conversation now.
                conversation.pending = []
    close_progress()
    print(flush=True)
    if cancel.is_set():
        print("(stopped)", file=sys.stderr)


@contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """Let Ctrl-C set a flag, which ends the answer between two tokens.

    A second one interrupts as usual, should a step take long.
    """
    cancel = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        if cancel.is_set():
            raise KeyboardInterrupt
        cancel.set()

    previous = signal.signal(signal.SIGINT, stop)
    try:
        yield cancel
    finally:
        signal.signal(signal.SIGINT, previous)
