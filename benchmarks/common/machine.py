"""What a figure was measured on."""

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mlx.core as mx

PACKAGES = ("mlx", "mlx-lm", "mlx-vlm", "numpy", "pillow")


def describe_machine() -> dict[str, str]:
    """Return chip, memory, system, BLAS and versions."""
    info = mx.device_info()
    facts = {
        "chip": str(info.get("device_name") or info.get("architecture") or platform.machine()),
        "device": mx.default_device().type.name,
        "cores": str(os.cpu_count()),
        "memory": f"{total_memory() / 1e9:.0f} GB",
        "system": platform.platform(),
        "python": platform.python_version(),
        "blas": blas_name(),
    }
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return facts


def total_memory() -> int:
    """Return the machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def blas_name() -> str:
    """Return which BLAS the CPU backend's matrix products call."""
    if platform.system() == "Darwin":
        return "Accelerate"
    mapped = Path("/proc/self/maps").read_text(encoding="utf-8")
    # A preloaded library comes before the one in MLX's wheel. numpy's own has another name.
    found = set(re.findall(r"/(lib(?:openblas|mkl_rt|blis)[^/\s]*)", mapped))
    return ", ".join(sorted(found)) or "reference BLAS of the mlx wheel"
