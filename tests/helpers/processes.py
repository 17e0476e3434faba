"""Processes that MLX connects on this machine, and windows of others."""

import socket
import subprocess
import sys
import time

import pytest


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for_window(display, process):
    """Return when a process that was just started has opened its window."""
    names = "import tkinter; print(*tkinter.Tk(className='other').winfo_interps())"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        found = subprocess.run(
            [sys.executable, "-c", names], env=display, capture_output=True, text=True, check=True
        )
        if "jvlm" in found.stdout.split():
            return
    pytest.fail("no window was opened")
