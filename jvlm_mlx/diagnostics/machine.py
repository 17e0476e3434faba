"""Chip, memory, system and versions, and which of them do not meet the requirements."""

import os
import platform
from collections.abc import Iterator
from importlib.metadata import version

import mlx.core as mx

from .findings import Finding

MIN_MLX = (0, 32, 2)
"""The first with a fused kernel for heads of 72 values, the vision tower's."""
MIN_MEMORY = 8e9
"""The smallest Mac has 8 GiB, of which bfloat16 weights take 5 GB."""


def check_machine() -> Iterator[Finding]:
    """Yield what this machine is."""
    info = mx.device_info()
    on_gpu = mx.default_device().type == mx.gpu
    chip = str(info.get("device_name") or info.get("architecture") or platform.machine())
    yield Finding("chip", f"{chip}, {os.cpu_count()} cores", _chip_problem(on_gpu))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Finding(
        "memory",
        f"{memory / 1e9:.1f} GB",
        "this is less than 8 GB: only a 4-bit model and small images will fit"
        if memory < MIN_MEMORY
        else None,
    )
    limit = info.get("max_recommended_working_set_size")
    if limit:
        yield Finding("memory for the GPU", f"{int(limit) / 1e9:.1f} GB")
    yield Finding("system", f"{platform.platform()}, Python {platform.python_version()}")
    yield Finding("MLX", f"{version('mlx')}, mlx-lm {version('mlx-lm')}", _mlx_problem())
    yield Finding("device", "GPU" if on_gpu else "CPU")


def _chip_problem(on_gpu: bool) -> str | None:
    if platform.system() != "Darwin":
        return None
    if platform.machine() != "arm64":
        return (
            "this Python was built for Intel and runs through Rosetta, where MLX has no GPU:"
            " install Python for Apple Silicon"
        )
    return None if on_gpu else "MLX does not use the GPU of this Mac: reinstall mlx"


def _mlx_problem() -> str | None:
    parts = version("mlx").split(".")
    found = tuple(int(part) for part in parts[:3] if part.isdigit())
    if found >= MIN_MLX:
        return None
    return "this MLX has no fused attention for the vision tower: pip install -U mlx"
