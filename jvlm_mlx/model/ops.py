"""The one place that chooses between MLX's kernels and arithmetic for its CPU backend.

A GPU runs MLX's fused kernels. The CPU backend has none, and for float32 the functions of `cpu`
are faster there; results are equal up to rounding.
"""

import math
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache as memoized
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .. import _mlx_lm
from . import cpu

Mask = mx.array | str | None
"""As `mx.fast.scaled_dot_product_attention` takes it: an array, `causal`, or None."""

MAX_VECTOR_QUERIES = 8
"""Up to so many queries, MLX's attention on a GPU works query by query, and copies a mask that is
broadcast over the heads."""
PADDED_HEAD_SIZES = {72: 96}
"""Head sizes that a GPU's neural accelerators do not take, and the next that they do."""

_mlx_only: ContextVar[bool] = ContextVar("_mlx_only", default=False)


@contextmanager
def mlx_kernels_only() -> Iterator[None]:
    """Use MLX's kernels on every device, as a GPU does."""
    token = _mlx_only.set(True)
    try:
        yield
    finally:
        _mlx_only.reset(token)


def uses_cpu_arithmetic(x: mx.array) -> bool:
    """Return whether `x` is computed with the functions of `cpu`."""
    return x.dtype == mx.float32 and mx.default_device().type == mx.cpu and not _mlx_only.get()


@memoized
def has_neural_accelerators() -> bool:
    """Return whether this machine's GPU has them: from generation 17 (M5), macOS 26.2."""
    if not mx.metal.is_available():
        return False
    architecture = re.match(r"applegpu_g(\d+)", str(mx.device_info().get("architecture", "")))
    system = tuple(int(part) for part in platform.mac_ver()[0].split(".")[:2] if part.isdigit())
    return architecture is not None and int(architecture[1]) >= 17 and system >= (26, 2)


def attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    *,
    scale: float,
    mask: Mask = None,
    cache: Any | None = None,
    training: bool = False,
) -> mx.array:
    """Return softmax(scale * queries keys^T + mask) values.

    Args:
        queries: (B, H, L, D).
        keys: (B, G, K, D), where G divides H; quantized if `cache` is.
        values: (B, G, K, D).
        scale: factor on the scores.
        mask: who sees whom.
        cache: of mlx-lm, the KV cache.
        training: whether gradients will be asked for.

    Returns:
        (B, H, L, D).
    """
    if uses_cpu_arithmetic(queries) and cache is None:
        if training and (mask is None or mask == "causal"):
            return cpu.differentiable_attention(
                queries, keys, values, scale, causal=mask == "causal"
            )
        if mask is None and queries.shape == keys.shape and queries.shape[2] > 1:
            return cpu.attention(queries, keys, values, scale)
    length, size = queries.shape[-2:]
    if (
        length > MAX_VECTOR_QUERIES
        and size in PADDED_HEAD_SIZES
        and not hasattr(cache, "bits")
        and has_neural_accelerators()
    ):
        queries, keys, values = (_padded(array) for array in (queries, keys, values))
    attended: mx.array = _mlx_lm.scaled_dot_product_attention(
        queries, keys, values, cache=cache, scale=scale, mask=mask
    )
    return attended[..., :size] if attended.shape[-1] > size else attended


def _padded(heads: mx.array) -> mx.array:
    """Fill heads (..., D) with zeros up to a size that is fast; products with zeros add nothing."""
    size = heads.shape[-1]
    return mx.pad(heads, [(0, 0)] * (heads.ndim - 1) + [(0, PADDED_HEAD_SIZES[size] - size)])


def decoding_mask(mask: Mask, queries: tuple[int, int, int]) -> Mask:
    """Return a mask (B, 1, L, K) as the layers of a batch of decode steps can all share it.

    Attention would broadcast it over the heads and copy the result, in every layer anew.

    Args:
        mask: of any kind.
        queries: B, H and L.
    """
    batch, heads, length = queries
    if not isinstance(mask, mx.array) or batch == 1 or length > MAX_VECTOR_QUERIES:
        return mask
    return mx.contiguous(mx.broadcast_to(mask, (batch, heads, length, mask.shape[-1])))


@partial(mx.compile, shapeless=True)
def _gelu_tanh(x: mx.array) -> mx.array:
    # (1 + tanh(u)) / 2 is sigmoid(2 u): one function call. In float32 whatever the input is, as in
    # the reference implementation. Written as a sum of two products, the chain is short enough for
    # MLX to make one kernel of it, casts included.
    y = x.astype(mx.float32)
    factor = math.sqrt(8 / math.pi)
    inner = factor * y + (factor * 0.044715 * y) * (y * y)
    return (y * mx.sigmoid(inner)).astype(x.dtype)


def gelu_tanh(x: mx.array) -> mx.array:
    """Return the tanh-approximated GELU, of the same shape and dtype."""
    return cpu.gelu_tanh(x) if uses_cpu_arithmetic(x) else _gelu_tanh(x)


Activation = Callable[[mx.array], mx.array]
ACTIVATIONS: dict[str, Activation] = {
    "silu": nn.silu,
    "gelu": nn.gelu,
    "gelu_pytorch_tanh": gelu_tanh,
}


def _gate(activation: Activation, gate: mx.array, value: mx.array) -> mx.array:
    return activation(gate) * value


# One elementwise kernel each, for any shape.
_GATES = {
    name: mx.compile(partial(_gate, activation), shapeless=True)
    for name, activation in ACTIVATIONS.items()
}


def gated(activation: str, gate: mx.array, value: mx.array) -> mx.array:
    """Return `activation(gate) * value`, of the same shape and dtype."""
    if not uses_cpu_arithmetic(gate):
        return _GATES[activation](gate, value)
    if activation == "silu":
        return cpu.silu_gate(gate, value)
    # A function with a gradient of its own cannot be compiled for any shape.
    return ACTIVATIONS[activation](gate) * value
