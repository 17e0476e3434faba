"""The loop on the terminal: a question, its answer, the next question."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from types import FrameType

from ..errors import JvlmError
from ..progress import Progress
from .chat_commands import Ask, Conversation
from .chat_lines import read_question
from .formatting import printable
from .noticed_interrupts import noticed_interrupts

PROMPT, CONTINUED = "> ", ". "


def run_console(
    conversation: Conversation, progress: Progress, close_progress: Callable[[], None]
) -> None:
    """Talk until there are no more lines.

    Answers go to standard output, everything else to standard error.

    Args:
        conversation: to continue.
        progress: called with how far images and prompt have come.
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
            print(f"error: {printable(str(error))}", file=sys.stderr)


def _read_line(continued: bool) -> str:
    if not sys.stdin.isatty():
        return input()
    with noticed_interrupts():
        return input(CONTINUED if continued else PROMPT)


def _react(
    conversation: Conversation,
    line: str,
    progress: Progress,
    close_progress: Callable[[], None],
) -> None:
    reaction = conversation.react(line)
    if isinstance(reaction, str):
        print(printable(reaction), file=sys.stderr)
        return
    with _stoppable() as cancel:
        _answer(conversation, reaction, progress, close_progress, cancel)
    close_progress()
    print(flush=True)
    if cancel.is_set():
        print("(stopped)", file=sys.stderr)


def _answer(
    conversation: Conversation,
    ask: Ask,
    progress: Progress,
    close_progress: Callable[[], None],
    cancel: threading.Event,
) -> None:
    # Elsewhere the text stays as it is, to the last character.
    show = printable if sys.stdout.isatty() else str
    before = len(conversation.session.history)
    try:
        with closing(ask(progress=progress, cancel=cancel)) as answer:
            for response in answer:
                close_progress()
                conversation.last_response = response
                print(show(response.text), end="", flush=True)
    finally:
        if len(conversation.session.history) > before:
            # The images are part of the conversation now.
            conversation.pending = []


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
