"""Ctrl-C while a command line is still importing: the process ends, without a traceback.

There is nothing to clean up yet, and an exception would come out of the middle of some library's
import. Only this package's own command lines change the handler; an app keeps its own.
"""

import os
import re
import signal
import sys
from types import FrameType

EXIT_INTERRUPTED = 130
"""After Ctrl-C, as in shells."""

_MODULE = re.compile(r"(-\w*m)?jvlm_mlx(\.|$)")


def is_command_line() -> bool:
    """Return whether Python is about to run `python -m jvlm_mlx.SUBCOMMAND`."""
    # While Python looks for the module, `-m` stands for its name, which the original has.
    return sys.argv[:1] == ["-m"] and bool(_MODULE.match(sys.orig_argv[-len(sys.argv)]))


def end_at_once() -> None:
    """Let Ctrl-C end this process, until `raise_again`; a handler that is not Python's stays."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def raise_again() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(_number: int, _frame: FrameType | None) -> None:
    if sys.stderr is not None:
        os.write(2, b"\n")  # the shell's prompt begins below ^C
    os._exit(EXIT_INTERRUPTED)
