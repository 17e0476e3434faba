"""Ctrl-C while a line is typed, at whatever moment it comes.

Python's readline looks for signals only when one has interrupted its waiting for a key. One that
comes a moment earlier, while a key is shown, is noticed when the line is complete: whoever pressed
Ctrl-C waits for nothing. So it is repeated here until Python has noticed it.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SECONDS = 0.05
"""Between two reminders; an interrupt that readline notices needs far less."""


@contextmanager
def noticed_interrupts() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt even if C code has missed it.

    In the main thread, and where Ctrl-C is handled as Python does; elsewhere nothing is done.
    """
    main = threading.main_thread()
    if (
        threading.current_thread() is not main
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    noticed = False
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def note(_number: int, _frame: FrameType | None) -> None:
        nonlocal noticed
        noticed = True
        raise KeyboardInterrupt

    def remind() -> None:
        while number := os.read(reader, 1):  # of a signal that has come
            time.sleep(_SECONDS)
            if not noticed and number[0] == signal.SIGINT:
                assert main.ident is not None
                signal.pthread_kill(main.ident, signal.SIGINT)

    reminder = threading.Thread(target=remind, name="jvlm-interrupts", daemon=True)
    reminder.start()
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        try:
            signal.set_wakeup_fd(before)
            os.close(writer)
            reminder.join()  # the last reminder has come by then
            os.close(reader)
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
