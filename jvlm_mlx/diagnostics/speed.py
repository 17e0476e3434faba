"""A short speed test, and what it means for a model of the released size."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx

from .findings import Finding

_SIDE = 1024
_ROWS = 12288
_MATRICES = 4
"""50 million weights in all: more than any processor's cache holds."""
_SECONDS = 2.0
"""For each rate. Other programs only make it slower, so the fastest try counts."""

DECODER_WEIGHTS = 1_721_000_000
"""Weights that a decode step of the released model reads: layers and head."""
_BYTES = {"bfloat16": 2.0, "8-bit": 1.0625, "4-bit": 0.5625}
"""Of a weight, with its fraction of scale and bias in groups of 64."""
_SLOW_MATMUL = 20e9
"""A reference BLAS does 1 to 3 GFLOP/s on a core, a tuned one 30 and more."""


def check_speed(dtype: mx.Dtype) -> Iterator[Finding]:
    """Yield rates of plain operations, and the tokens a second that they allow at most."""
    square = mx.random.normal((_SIDE, _SIDE), key=mx.random.key(0)).astype(dtype)
    row = square[:1]
    matrices = [
        mx.random.normal((_ROWS, _SIDE), key=mx.random.key(seed)).astype(dtype)
        for seed in range(_MATRICES)
    ]
    mx.eval(square, row, matrices)
    matmul = 2 * _SIDE**3 / _fastest(lambda: square @ square.T)
    name = str(dtype).rpartition(".")[2]
    yield Finding(
        "matrix products",
        f"{matmul / 1e9:.0f} GFLOP/s in {name}",
        "matrix products are slow here: MLX's CPU build uses a reference BLAS; preload OpenBLAS"
        " (LD_PRELOAD=.../libopenblas.so.0)"
        if matmul < _SLOW_MATMUL and mx.default_device().type == mx.cpu
        else None,
    )
    total = sum(matrix.nbytes for matrix in matrices)
    streaming = total / _fastest(lambda: [row @ matrix.T for matrix in matrices])
    yield Finding("reading weights", f"{streaming / 1e9:.1f} GB/s")
    for bits, size in _BYTES.items():
        tokens = streaming / (DECODER_WEIGHTS * size)
        yield Finding(f"tokens a second, {bits}", f"at most {tokens:.0f} (computed)")


def _fastest(work: Callable[[], Any]) -> float:
    """Return the shortest time of `work` in seconds, trying for a short while."""
    mx.eval(work())
    best, end = float("inf"), time.perf_counter() + _SECONDS
    while True:
        start = time.perf_counter()
        mx.eval(work())
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() > end:
            return best
