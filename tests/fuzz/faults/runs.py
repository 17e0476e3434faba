"""Runs a subcommand in a forked process, which has all imports already, with a fault."""

import importlib
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from jvlm_mlx.cli.main import SUBCOMMANDS, run_subcommand

MAX_SECONDS = 120

for _one in SUBCOMMANDS.values():
    importlib.import_module(f"jvlm_mlx.{_one.module}")


@dataclass(frozen=True)
class Outcome:
    """What became of a run."""

    code: int
    """Exit code; negative: the signal that ended it."""
    errors: tuple[str, ...]
    """Lines on standard error."""
    calls: tuple[str, ...]
    """Kind and path of each call in the folder, where they were to be noted."""
    seconds: float


def run(arguments, typed, folder, scratch, injector, fault, *, note=False):
    """Run a subcommand, and return what became of it.

    Args:
        arguments: name and flags of the subcommand.
        typed: on standard input.
        folder: whose calls are counted.
        scratch: folder for what the run prints, outside of `folder`.
        injector: lets the fault happen.
        fault: the fault.
        note: whether to note the calls, and to import here what the run had to import.
    """
    said, log, input_ = scratch / "said", scratch / "calls", scratch / "typed"
    modules = scratch / "modules"
    input_.write_text(typed)
    log.write_text("")
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            for descriptor, path, flags in (
                (0, input_, os.O_RDONLY), (1, os.devnull, os.O_WRONLY),
                (2, said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
            ):  # fmt: skip
                os.dup2(os.open(path, flags, 0o666), descriptor)
            sys.stdin = open(0, closefd=False)  # noqa: SIM115 - for the process
            injector.arm(folder, fault, log if note else None)
            code = run_subcommand(arguments[0], [str(one) for one in arguments[1:]])
            if note:
                modules.write_text("\n".join(sys.modules))
        except SystemExit as ended:
            code = ended.code or 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
            code = 99
        sys.stderr.flush()
        os._exit(code)
    code = _wait(child, start, MAX_SECONDS if fault.seconds is None else fault.seconds)
    if note and not code:
        for name in modules.read_text().splitlines():
            with suppress(ImportError):
                importlib.import_module(name)
    errors = tuple(said.read_text(errors="replace").splitlines()) if said.exists() else ()
    calls = tuple(log.read_text().splitlines())
    return Outcome(code, errors, calls, time.monotonic() - start)


def _wait(child, start, seconds):
    """Wait for a process, or kill it after some seconds; return its exit code."""
    pause = min(0.002, seconds / 20)
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() - start > seconds:
            os.kill(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        time.sleep(pause)


def contents(folder):
    """Return the bytes of all files below a folder, by path."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(Path(folder).rglob("*"))
        if file.is_file()
    }
