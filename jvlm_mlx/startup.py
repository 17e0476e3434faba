"""What this package's own command lines set before anything else is imported; an app keeps its own.

Ctrl-C ends the process at once, without a traceback: there is nothing to clean up yet, and an
exception would come out of the middle of some library's import.

MLX puts more into one Metal command buffer. It commits one after 20 to 50 kernels or 40 to 50 MB
of what they read. A decode step has over 400 kernels and reads all weights, so it would be cut into
dozens of buffers, each of which costs time to submit. MLX reads both limits once, when it first
uses Metal, from the environment.
"""

import os
import platform
import re
import signal
import sys
from collections.abc import MutableMapping
from types import FrameType

from .units import total_memory

EXIT_INTERRUPTED = 130
"""After Ctrl-C, as in shells."""
MAX_OPERATIONS = "MLX_MAX_OPS_PER_BUFFER", 500
MAX_MEGABYTES = "MLX_MAX_MB_PER_BUFFER", 200
MIN_MEMORY = 32 * 2**30
"""Results stay in memory until the buffer that reads them is done; smaller Macs keep MLX's limit
on bytes."""

_MODULE = re.compile(r"(-\w*m)?jvlm_mlx(\.|$)")


def is_command_line() -> bool:
    """Return whether Python is about to run `python -m jvlm_mlx.SUBCOMMAND`."""
    # While Python looks for the module, `-m` stands for its name, which the original has.
    return sys.argv[:1] == ["-m"] and bool(_MODULE.match(sys.orig_argv[-len(sys.argv)]))


def begin() -> None:
    """Prepare this process, which runs a command line of this package and nothing else."""
    end_at_once()
    set_limits()


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


def set_limits(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set the limits that are not set already; on Apple silicon, before MLX is imported."""
    if (platform.system(), platform.machine()) != ("Darwin", "arm64"):
        return
    limits = [MAX_OPERATIONS]
    if total_memory() >= MIN_MEMORY:
        limits.append(MAX_MEGABYTES)
    for name, value in limits:
        environment.setdefault(name, str(value))
