"""Two ways to let a fault happen in this process; both count the calls in one folder.

The library in C sees every call, those of MLX too, and needs Linux and a compiler. Python's own
audit events come before most calls of Python code, and need nothing.
"""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.fuzz.faults.fault import NO_FAULT, happen

SOURCE = Path(__file__).with_name("interposer.c")
_EVENTS = {
    "os.rename": "rename",
    "os.remove": "remove",
    "os.rmdir": "remove",
    "os.mkdir": "mkdir",
    "os.chmod": "chmod",
}


def compile_interposer(folder):
    """Return the library in C, compiled; None where that is not possible."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    library = Path(folder) / "interposer.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"]
    return library if subprocess.run(command, check=False).returncode == 0 else None


class Interposer:
    """The library in C, which this process was started with (LD_PRELOAD)."""

    def arm(self, folder, fault, log=None):
        """Let a fault happen in `folder`; note the calls in a file, if one is given."""
        descriptor = -1
        if log is not None:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        ctypes.CDLL(None).fault_arm(
            os.fsencode(f"{folder}{os.sep}"), ctypes.c_long(fault.at), fault.mode, fault.error,
            descriptor,
        )  # fmt: skip


class AuditHook:
    """Python's audit events, and `os.fsync`, which has none. There is no way back."""

    def arm(self, folder, fault, log=None):
        """Let a fault happen in `folder`; note the calls in a file, if one is given."""
        self._folder, self._fault, self._calls = f"{folder}{os.sep}", fault, 0
        self._log = None if log is None else Path(log).open("w")  # noqa: SIM115 - for the process
        sys.addaudithook(self._look)
        sync = os.fsync

        def fsync(descriptor):
            self._call("sync descriptor")
            return sync(descriptor)

        os.fsync = fsync

    def _look(self, event, arguments):
        kind = _EVENTS.get(event)
        if event == "open" and isinstance(arguments[2], int):
            kind = "create" if arguments[2] & os.O_CREAT else "open"
        if kind is not None and not isinstance(arguments[0], int):
            path = os.fsdecode(arguments[0])
            if path.startswith(self._folder):
                self._call(f"{kind} {path}")

    def _call(self, call):
        number, self._calls = self._calls, self._calls + 1
        if self._log is not None:
            print(call, file=self._log, flush=True)
        happen(self._fault, call, number, kill=True)


def is_interposed():
    """Return whether this process was started with the library in C."""
    return hasattr(ctypes.CDLL(None), "fault_arm")


def injector():
    """Return the way that this process has."""
    return Interposer() if is_interposed() else AuditHook()


__all__ = ["NO_FAULT", "compile_interposer", "injector", "is_interposed"]
