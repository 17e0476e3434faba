"""A fault: which call of a process goes wrong, and how."""

import errno
import os
from dataclasses import dataclass

COUNT, FAIL, FULL, SHORT, KILL_BEFORE, KILL_AFTER = range(6)
"""Modes: nothing happens; the call fails; it and all later ones that take space fail; it writes
half; the process is killed before the call, or behind it."""

ERRORS = {
    "open": (errno.EMFILE, errno.EACCES, errno.EIO),
    "create": (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EMFILE),
    "write": (errno.ENOSPC, errno.EIO, errno.EDQUOT),
    "sync": (errno.EIO, errno.ENOSPC, errno.EDQUOT),
    "rename": (errno.EACCES, errno.EIO, errno.EDQUOT),
    "remove": (errno.EACCES, errno.EIO),
    "mkdir": (errno.ENOSPC, errno.EDQUOT, errno.EACCES),
    "chmod": (errno.EACCES, errno.EIO),
}
"""What calls of a kind may fail with."""
_NAMES = ("nothing", "fails", "finds the disk full", "writes half", "is not reached", "is the last")


@dataclass(frozen=True)
class Fault:
    """One fault.

    Args:
        at: number of the call, counted from 0.
        mode: what happens there.
        error: what the call fails with.
        call: what the call was in an undisturbed run, for people.
        seconds: after which the process is killed, whatever it does; None: not by time.
    """

    at: int = -1
    mode: int = COUNT
    error: int = 0
    call: str = ""
    seconds: float | None = None

    @property
    def kills(self):
        return self.seconds is not None or self.mode in (KILL_BEFORE, KILL_AFTER)

    def __str__(self):
        if self.seconds is not None:
            return f"killed after {self.seconds:.4f} s"
        name = f" with {errno.errorcode[self.error]}" if self.error else ""
        return f"call {self.at} ({self.call}) {_NAMES[self.mode]}{name}"


NO_FAULT = Fault()


def failures(calls):
    """Return every fault of a run that did these calls, each a kind and a path."""
    found = []
    for at, call in enumerate(calls):
        kind = call.partition(" ")[0]
        found += [Fault(at, FAIL, error, call) for error in ERRORS[kind]]
        if kind in ("create", "write", "mkdir"):
            found.append(Fault(at, FULL, errno.ENOSPC, call))
        if kind == "write":
            found.append(Fault(at, SHORT, 0, call))
    return found


def kills(calls):
    """Return every fault that kills a run that did these calls."""
    return [Fault(at, mode, 0, call) for at, call in enumerate(calls) for mode in _KILLS]


_KILLS = (KILL_BEFORE, KILL_AFTER)


def happen(fault, call, number, kill):
    """Let a fault happen in Python, if this call is its own.

    Args:
        fault: of this process.
        call: kind and path.
        number: of the call.
        kill: whether to kill the process if that is the fault.
    """
    kind, _, path = call.partition(" ")
    takes_space = kind in ("create", "write", "mkdir")
    if (fault.mode == FAIL and number == fault.at) or (
        fault.mode == FULL and number >= fault.at and takes_space
    ):
        named = (path,) if kind != "sync" else ()
        raise OSError(fault.error, os.strerror(fault.error), *named)
    if kill and fault.mode in _KILLS and number == fault.at:
        os.kill(os.getpid(), 9)
