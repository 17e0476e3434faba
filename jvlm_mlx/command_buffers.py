"""How much MLX puts into one Metal command buffer: more, for the command lines of this package.

MLX commits a buffer after 20 to 50 kernels or 40 to 50 MB of what they read. A decode step has
423 kernels and reads all weights, so it would be cut into dozens of buffers, each of which costs
time to submit. MLX reads both limits once, when it first uses Metal, from the environment; an app
that embeds this package sets its own.
"""

import os
import platform
from collections.abc import MutableMapping

MAX_OPERATIONS = "MLX_MAX_OPS_PER_BUFFER", 500
MAX_MEGABYTES = "MLX_MAX_MB_PER_BUFFER", 200
MIN_MEMORY = 32 * 2**30
"""Results stay in memory until the buffer that reads them is done; smaller Macs keep MLX's limit
on bytes."""


def set_limits(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set the limits that are not set already; on Apple silicon, before MLX is imported."""
    if (platform.system(), platform.machine()) != ("Darwin", "arm64"):
        return
    limits = [MAX_OPERATIONS]
    if _memory() >= MIN_MEMORY:
        limits.append(MAX_MEGABYTES)
    for name, value in limits:
        environment.setdefault(name, str(value))


def _memory() -> int:
    """Return the bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
