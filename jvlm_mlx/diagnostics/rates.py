"""How fast plain operations are: matrix products, streaming of weights, launches, numpy.

They are chained, so that each waits for the one before as in a model, and evaluated together.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from ..config.dtypes import BY_MLX
from .roofline import Rates, WeightFormat
from .sample_model import released_config

CHAINED = (20, 50)
"""Operations that are evaluated at once: fewer would measure how long an evaluation takes."""
_REPEATS = 3
"""Other programs only make a piece of work slower, so the fastest counts."""
_LONG = 3.0
"""Seconds."""
_ROWS = 12_288
"""Of the matrices that are streamed: the decoder's widest."""


@dataclass(frozen=True)
class Effort:
    """How much of the release is run."""

    seconds: float
    """Most that the prediction of a stage may be; layers, tiles and tokens are left out above."""
    distinct_layers: int
    """With weights of their own; a stage of full depth runs them again and again."""
    vocabulary: int | None
    """Rows of the head; None for all."""
    chain_seconds: float
    """For each rate."""


FULL = Effort(seconds=30.0, distinct_layers=4, vocabulary=None, chain_seconds=2.0)
QUICK = Effort(seconds=1.5, distinct_layers=1, vocabulary=16_384, chain_seconds=0.7)


def fastest(work: Callable[[], Any], repeats: int = _REPEATS) -> float:
    """Return the shortest time of `work` in seconds.

    The first run, which compiles, does not count, unless it takes so long that it does not matter.
    """
    times: list[float] = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        mx.eval(work())
        times.append(time.perf_counter() - start)
        if times[0] > _LONG:
            break
    return min(times[1:] or times)


def chained(step: Callable[[mx.array, int], mx.array], start: mx.array, seconds: float) -> float:
    """Return the time of one step of a chain: 20 to 50 at a time, fewer where one takes too long.

    Args:
        step: from the last result and its index to the next.
        start: what the first begins with.
        seconds: for the whole chain.
    """
    one = fastest(partial(step, start, 0), 1)
    low, high = CHAINED
    count = max(1, min(high, int(seconds / max(one, 1e-9))))
    if mx.default_device().type == mx.gpu:
        count = max(low, count)

    def chain() -> mx.array:
        x = start
        for index in range(count):
            x = step(x, index)
        return x

    return fastest(chain) / count


def measure_rates(form: WeightFormat, dtype: mx.Dtype, effort: Effort) -> Rates:
    """Measure matrix products, streaming of weights and launches at the release's widths."""
    decoder = released_config().decoder
    width = decoder.hidden_size
    on_gpu = mx.default_device().type == mx.gpu
    rows = 2048 if on_gpu else 256

    def weights(seed: int, outputs: int) -> tuple[mx.array, ...]:
        matrix = mx.random.normal((outputs, width), key=mx.random.key(seed)) * width**-0.5
        arrays: tuple[mx.array, ...] = (matrix.astype(dtype),)
        if form.bits is not None:
            arrays = mx.quantize(arrays[0], form.group_size, form.bits)
        mx.eval(arrays)
        return arrays

    def product(x: mx.array, arrays: tuple[mx.array, ...]) -> mx.array:
        if form.bits is None:
            return x @ arrays[0].T
        weight, scales, biases = arrays
        return mx.quantized_matmul(
            x, weight, scales, biases, group_size=form.group_size, bits=form.bits
        )

    x = mx.random.normal((rows, width), key=mx.random.key(9)).astype(dtype)
    square = weights(0, width)
    matmul = chained(lambda x, _: product(x, square), x, effort.chain_seconds)
    # Together more than any cache holds.
    many = [weights(seed, _ROWS) for seed in range(1, 9 if form.bits is None else 17)]
    size = sum(array.nbytes for array in many[0])
    streaming = chained(
        lambda x, index: product(x, many[index % len(many)])[:, :width], x[:1],
        effort.chain_seconds,
    )  # fmt: skip
    step = mx.array(1.001, dtype)
    launch = chained(lambda x, _: x * step, x[:1], effort.chain_seconds)
    return Rates(flops=2 * rows * width**2 / matmul, bandwidth=size / streaming, launch=launch)


def measure_host_rates() -> Rates:
    """Measure numpy's multiply-adds as images are resized with them, and copies."""
    values = np.random.default_rng(0).random(2**17, np.float32)
    weight, total = values.astype(np.float64), values.copy()

    def multiply_add() -> None:
        product = values.take(np.arange(len(values))).astype(np.float64)
        product *= weight
        np.add(total, product, out=total, dtype=np.float64, casting="same_kind")

    large = np.zeros(2**24, np.float32)
    calls = 20

    def many() -> None:
        for _ in range(calls):
            multiply_add()

    return Rates(
        flops=2 * len(values) * calls / fastest(many),
        bandwidth=2 * large.nbytes / fastest(large.copy),
        launch=0.0,
    )


def weight_format(dtype: mx.Dtype, bits: int | None = None) -> WeightFormat:
    """Return the format of weights that are computed with in a type."""
    known = BY_MLX[dtype]
    return WeightFormat(f"{bits}-bit" if bits else known.name, bits, known.nbytes)
