"""The same mathematics for MLX's CPU backend, which calls a library function for each number.

There, exponentials and hyperbolic tangents cost more time than the matrix products around them.
Written as plain arithmetic they become vector instructions. Results equal the usual ones up to
float32 rounding. A GPU runs none of this: its kernels are fused and its functions are fast.
"""

import math
from functools import partial
from typing import Any

import mlx.core as mx

BLOCK_BYTES = 4 * 2**20
"""Scores computed at a time: they stay in the processor's cache, and the allocator reuses the
memory instead of asking the system for fresh pages."""

# Eigen's coefficients of a quotient that is tanh up to the limit, from where on it rounds to 1:
# odd powers above, even powers below, lowest first.
_TANH_LIMIT = 7.90531110763549805
_TANH_ABOVE = (
    4.89352455891786e-03, 6.37261928875436e-04, 1.48572235717979e-05, 5.12229709037114e-08,
    -8.60467152213735e-11, 2.00018790482477e-13, -2.76076847742355e-16,
)  # fmt: skip
_TANH_BELOW = (
    4.89352518554385e-03, 2.26843463243900e-03, 1.18534705686654e-04, 1.19825839466702e-06,
)  # fmt: skip
# 2^f is the sum of (f ln 2)^k / k!; for |f| up to 1/2 the rest is below float32 rounding.
_POWER_OF_TWO = [math.log(2) ** k / math.factorial(k) for k in range(8)]
# A function with gradients of its own. mlx declares that it returns an object.
_custom_function: Any = mx.custom_function
# Added to a float32 and taken off again, this rounds to a whole number.
_ROUND = 1.5 * 2**23


def _tanh(x: mx.array) -> mx.array:
    x = mx.clip(x, -_TANH_LIMIT, _TANH_LIMIT)
    square = x * x
    above, below = _TANH_ABOVE[-1] * square + _TANH_ABOVE[-2], _TANH_BELOW[-1] * square
    for coefficient in _TANH_ABOVE[-3::-1]:
        above = above * square + coefficient
    below = below + _TANH_BELOW[-2]
    for coefficient in _TANH_BELOW[-3::-1]:
        below = below * square + coefficient
    return x * above / below


def _gelu_tanh_argument(x: mx.array) -> mx.array:
    return math.sqrt(2 / math.pi) * x * (1 + 0.044715 * (x * x))


@partial(mx.compile, shapeless=True)
def _gelu_tanh(x: mx.array) -> mx.array:
    return 0.5 * x * (1 + _tanh(_gelu_tanh_argument(x)))


@partial(mx.compile, shapeless=True)
def _gelu_tanh_slope(x: mx.array, cotangent: mx.array) -> mx.array:
    tanh = _tanh(_gelu_tanh_argument(x))
    slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * (x * x))
    return cotangent * (0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * slope)


@_custom_function
def _smooth_gelu_tanh(x: mx.array) -> mx.array:
    return _gelu_tanh(x)


@_smooth_gelu_tanh.vjp
def _gelu_tanh_vjp(x: mx.array, cotangent: mx.array, _: mx.array) -> mx.array:
    return _gelu_tanh_slope(x, cotangent)


def gelu_tanh(x: mx.array) -> mx.array:
    """Return the tanh-approximated GELU of float32 numbers; it has gradients."""
    result: mx.array = _smooth_gelu_tanh(x)
    return result


@partial(mx.compile, shapeless=True)
def _silu_gate(gate: mx.array, value: mx.array) -> mx.array:
    return value * (gate * (0.5 + 0.5 * _tanh(0.5 * gate)))


@partial(mx.compile, shapeless=True)
def _silu_gate_slopes(
    gate: mx.array, value: mx.array, cotangent: mx.array
) -> tuple[mx.array, mx.array]:
    sigmoid = 0.5 + 0.5 * _tanh(0.5 * gate)
    slope = sigmoid * (1 + gate * (1 - sigmoid))
    return cotangent * value * slope, cotangent * (gate * sigmoid)


@_custom_function
def _smooth_silu_gate(gate: mx.array, value: mx.array) -> mx.array:
    return _silu_gate(gate, value)


@_smooth_silu_gate.vjp
def _silu_gate_vjp(
    primals: tuple[mx.array, mx.array], cotangent: mx.array, _: mx.array
) -> tuple[mx.array, mx.array]:
    return _silu_gate_slopes(*primals, cotangent)


def silu_gate(gate: mx.array, value: mx.array) -> mx.array:
    """Return `silu(gate) * value` of float32 numbers; it has gradients."""
    result: mx.array = _smooth_silu_gate(gate, value)
    return result


@partial(mx.compile, shapeless=True)
def _power_of_two(x: mx.array) -> tuple[mx.array, mx.array]:
    """Return 2^x, for x up to 0, as two factors: a float, and the bits of a float.

    The sum is arranged in a tree, since a longer chain would be more than one kernel.
    """
    x = mx.maximum(x, -126.0)
    whole = (x + _ROUND) - _ROUND
    f = x - whole
    c, f2 = _POWER_OF_TWO, f * f
    low = (c[0] + c[1] * f) + (c[2] + c[3] * f) * f2
    high = (c[4] + c[5] * f) + (c[6] + c[7] * f) * f2
    # A float of a whole power of two is its exponent, shifted into place.
    return low + high * (f2 * f2), ((whole + 127.0) * 2.0**23).astype(mx.int32)


@_custom_function
def _exp(x: mx.array) -> mx.array:
    """Return e^x, for x up to 0; it has gradients."""
    factor, bits = _power_of_two(x * (1 / math.log(2)))
    return factor * bits.view(mx.float32)


@_exp.vjp
def _exp_vjp(_: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
    return cotangent * output


def differentiable_attention(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, *, causal: bool
) -> mx.array:
    """Return attention in float32 that gradients flow through.

    All scores are in memory at once: the gradients need them.

    Args:
        queries: (B, H, L, D).
        keys: (B, G, L, D), where G divides H.
        values: (B, G, L, D).
        scale: factor on the scores.
        causal: whether a query sees only keys up to its own position.

    Returns:
        (B, H, L, D).
    """
    groups, length = keys.shape[1], queries.shape[2]
    # (B, H, L, D) -> (B, G, H / G, L, D)
    queries = mx.unflatten(queries * scale, 1, (groups, -1))
    scores = queries @ keys[:, :, None].swapaxes(-1, -2)
    if causal:
        # So low that nothing of it is left beside the weight 1 of the highest score.
        scores = scores + mx.triu(mx.full((length, length), -1e9), k=1)
    weights = _exp(scores - mx.stop_gradient(mx.max(scores, axis=-1, keepdims=True)))
    attended = (weights @ values[:, :, None]) / mx.sum(weights, axis=-1, keepdims=True)
    # (B, G, H / G, L, D) -> (B, H, L, D)
    return mx.flatten(attended, 1, 2)


def attention(queries: mx.array, keys: mx.array, values: mx.array, scale: float) -> mx.array:
    """Return full attention in float32, a few heads of one tile at a time.

    Args:
        queries: (T, H, P, D).
        keys: (T, H, P, D), as many heads as queries.
        values: (T, H, P, D).
        scale: factor on the scores.

    Returns:
        (T, H, P, D).
    """
    tiles, heads, patches, _ = queries.shape
    step = max(1, BLOCK_BYTES // (patches * patches * 4))
    rows: list[mx.array] = []
    for tile in range(tiles):
        blocks: list[mx.array] = []
        for first in range(0, heads, step):
            part = slice(tile, tile + 1), slice(first, first + step)
            block = queries[part]
            if blocks or rows:
                # One after the other: side by side they would all be in memory at once.
                (block,) = mx.depends([block], [(blocks or rows)[-1]])
            blocks.append(_block(block, keys[part], values[part], scale))
        rows.append(mx.concatenate(blocks, axis=1))
    return mx.concatenate(rows) if tiles > 1 else rows[0]


def _block(queries: mx.array, keys: mx.array, values: mx.array, scale: float) -> mx.array:
    # Powers of two instead of e: the factor goes into the queries.
    scores = (queries * (scale / math.log(2))) @ keys.swapaxes(-1, -2)
    factor, bits = _power_of_two(scores - mx.max(scores, axis=-1, keepdims=True))
    weights = factor * bits.view(mx.float32)
    return (weights @ values) / mx.sum(weights, axis=-1, keepdims=True)
