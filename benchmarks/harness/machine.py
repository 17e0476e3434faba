"""What a figure was measured on, and what that machine can do at best."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from statistics import median

import mlx.core as mx

from jvlm_mlx.diagnostics.machine import blas_name
from jvlm_mlx.units import total_memory

from .timing import measure

_SIDE = 2048
_ROWS = 12288
_MATRICES = 8

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
        "blas": blas_name() or "reference BLAS of the mlx wheel",
    }
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return facts


@dataclass(frozen=True)
class Limits:
    """Rates of plain MLX operations."""

    matmul: float
    """Floating point operations per second of a product of two 2048 x 2048 matrices."""
    streaming: float
    """Bytes of weights per second that pass through products of one row with matrices of
    12288 x 2048, as a decode step asks for. They are read once and do not fit a cache."""

    def __str__(self) -> str:
        return (
            f"matmul {self.matmul / 1e9:.0f} GFLOP/s,"
            f" weight streaming {self.streaming / 1e9:.1f} GB/s"
        )


def measure_limits(dtype: mx.Dtype = mx.float32, repeats: int = 5) -> Limits:
    """Measure both rates; the best repeat counts, since a limit is not an average."""
    key = mx.random.key(0)
    square = mx.random.normal((_SIDE, _SIDE), key=key).astype(dtype)
    row = mx.random.normal((1, _SIDE), key=key).astype(dtype)
    matrices = [
        mx.random.normal((_ROWS, _SIDE), key=mx.random.key(seed)).astype(dtype)
        for seed in range(_MATRICES)
    ]
    mx.eval(square, row, matrices)
    timings = measure(
        {
            "matmul": lambda: square @ square.T,
            "streaming": lambda: [row @ matrix.T for matrix in matrices],
        },
        repeats=repeats,
    )
    total = sum(matrix.nbytes for matrix in matrices)
    return Limits(
        matmul=2 * _SIDE**3 / min(timings["matmul"].seconds),
        streaming=total / min(timings["streaming"].seconds),
    )


def median_limits(measured: Sequence[Limits]) -> Limits:
    """Return the median of each rate, to compare median times with."""
    return Limits(
        matmul=median(limits.matmul for limits in measured),
        streaming=median(limits.streaming for limits in measured),
    )
