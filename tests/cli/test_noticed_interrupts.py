"""Ctrl-C while a line is typed: it is repeated until Python has noticed it."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from jvlm_mlx.cli.noticed_interrupts import noticed_interrupts


def note_signal(number):
    """Do what C code does at a signal, but for telling Python: as if Python had missed it."""
    writer = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    os.write(writer, bytes([number]))


def open_files():
    return len(list(Path("/dev/fd").iterdir()))


def test_a_missed_interrupt_is_repeated():
    def wait():
        with noticed_interrupts():
            note_signal(signal.SIGINT)
            time.sleep(30)

    with pytest.raises(KeyboardInterrupt):
        wait()


def test_an_interrupt_is_raised_once():
    with pytest.raises(KeyboardInterrupt), noticed_interrupts():
        signal.raise_signal(signal.SIGINT)
    time.sleep(0.2)


def test_other_signals_are_no_interrupts():
    with noticed_interrupts():
        note_signal(signal.SIGUSR1)
        time.sleep(0.2)


def test_handlers_and_threads_are_as_before():
    handler, threads = signal.getsignal(signal.SIGINT), threading.active_count()
    descriptors = open_files()
    for _ in range(3):
        with noticed_interrupts():
            assert signal.getsignal(signal.SIGINT) is not handler
    assert signal.getsignal(signal.SIGINT) is handler
    assert signal.set_wakeup_fd(-1) == -1
    assert threading.active_count() == threads
    assert open_files() == descriptors


def test_an_apps_own_handler_stays():
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with noticed_interrupts():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, handler)
