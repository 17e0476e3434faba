"""What to do where MLX computes on a CPU with a BLAS that is many times slower than need be."""

import sys
from functools import cache

import mlx.core as mx

from ..diagnostics.machine import blas_name


@cache
def hint_at_slow_blas() -> None:
    """Print one line on standard error if the reference BLAS is in use; once per process."""
    if mx.default_device().type != mx.cpu:
        return
    try:
        tuned = blas_name() is not None
    except OSError:  # without /proc, nobody knows
        return
    if not tuned:
        print(
            "hint: MLX's CPU build uses a slow reference BLAS; preload OpenBLAS"
            " (LD_PRELOAD=.../libopenblas.so.0) and pass --dtype float32",
            file=sys.stderr,
        )
