"""Which library MLX's CPU backend multiplies matrices with."""

import platform
import re
from pathlib import Path

_MAPPED = Path("/proc/self/maps")
"""The files in this process's memory, on Linux."""


def blas_name() -> str | None:
    """Return the BLAS of the CPU backend; None: the reference BLAS in MLX's wheel for Linux."""
    if platform.system() == "Darwin":
        return "Accelerate"
    # A preloaded library comes before the one in MLX's wheel. numpy's own has another name.
    mapped = _MAPPED.read_text(encoding="utf-8", errors="replace")
    found = set(re.findall(r"/(lib(?:openblas|mkl_rt|blis)[^/\s]*)", mapped))
    return ", ".join(sorted(found)) or None
