"""Counts hidden copies: inputs that MLX's GPU kernels copy first, since their layout is another.

The graph does not show them. So a small model is run with stand-ins that look at the strides of
what norms, rotary positions, attention and reshapes are given, and apply the conditions of
MLX 0.32's Metal backend (`normalization.cpp`, `rope.cpp`, `scaled_dot_product_attention.cpp`).
Matrix products are not watched.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import mlx.core as mx
import numpy as np

from jvlm_mlx.model.ops import MAX_VECTOR_QUERIES, mlx_kernels_only


def count_copies(run: Callable[[], Any]) -> Counter[str]:
    """Return how many inputs of each kind of kernel a GPU would copy while `run` is computed.

    Args:
        run: computes in float32 and returns its outputs.
    """
    found: Counter[str] = Counter()
    with _watched(found), mlx_kernels_only():
        mx.eval(run())
    return found


def _strides(array: mx.array) -> tuple[int, ...]:
    """Return the strides of an array, in elements."""
    mx.eval(array)
    view = np.array(array, copy=False)
    return tuple(stride // view.itemsize for stride in view.strides)


def _is_row_contiguous(array: mx.array) -> bool:
    mx.eval(array)
    return bool(np.array(array, copy=False).flags.c_contiguous)


def _norm_copies(x: mx.array) -> bool:
    strides = _strides(x)
    # From the first element to the last there must be nothing else.
    span = 1 + sum((side - 1) * stride for side, stride in zip(x.shape, strides, strict=True))
    rows = x.ndim == 1 or x.shape[-2] == 1 or strides[-2] in (0, x.shape[-1])
    return not (span == x.size and strides[-1] == 1 and rows)


def _rope_copies(x: mx.array) -> bool:
    if _is_row_contiguous(x) or x.ndim == 3 or (x.ndim == 4 and x.shape[0] == 1):
        return False
    _, heads, length, size = x.shape
    return _strides(x)[:3] != (length * heads * size, size, heads * size)


def _queries_copied(x: mx.array) -> bool:
    batch, heads, length, size = x.shape
    strides = _strides(x)
    if length > MAX_VECTOR_QUERIES:
        return strides[-1] != 1
    if _is_row_contiguous(x):
        return False
    if batch > 1 and heads > 1:
        return True
    other = 1 if batch == 1 else 0
    return strides[2:] != (size * x.shape[other], 1) or strides[other] != size


def _keys_copied(x: mx.array, length: int) -> bool:
    strides = _strides(x)
    if strides[-1] != 1:
        return True
    if length > MAX_VECTOR_QUERIES or x.shape[0] == 1 or x.shape[1] == 1:
        return False
    return strides[0] != strides[1] * x.shape[1]


def _mask_copied(mask: mx.array, queries: mx.array) -> bool:
    batch, heads, length, _ = queries.shape
    mask = mx.broadcast_to(mask, (batch, heads, length, mask.shape[-1]))
    strides = _strides(mask)
    if length > MAX_VECTOR_QUERIES:
        return strides[-1] != 1
    if _is_row_contiguous(mask) or batch == 1 or heads == 1:
        return False
    return strides[0] != strides[1] * heads


@contextmanager
def _watched(found: Counter[str]) -> Iterator[None]:
    def watch(kind: str, copies: Callable[[mx.array], bool], whole: Any) -> Any:
        def watched(x: mx.array, *others: Any, **options: Any) -> Any:
            found[kind] += copies(x)
            return whole(x, *others, **options)

        return watched

    attention = mx.fast.scaled_dot_product_attention

    def watched_attention(
        q: mx.array, k: mx.array, v: mx.array, *, mask: Any = None, **options: Any
    ) -> mx.array:
        length = q.shape[2]
        found["attention"] += _queries_copied(q)
        found["attention"] += _keys_copied(k, length) + _keys_copied(v, length)
        if isinstance(mask, mx.array):
            found["mask"] += _mask_copied(mask, q)
        attended = attention(q, k, v, mask=mask, **options)
        if length > MAX_VECTOR_QUERIES:
            # The kernel stores (B, L, H, D) here.
            attended = mx.contiguous(attended.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
        return attended

    def reshapes(x: mx.array) -> bool:
        return not _is_row_contiguous(x)

    with ExitStack() as stack:
        for module, name, replacement in (
            (mx.fast, "rms_norm", watch("norm", _norm_copies, mx.fast.rms_norm)),
            (mx.fast, "layer_norm", watch("norm", _norm_copies, mx.fast.layer_norm)),
            (mx.fast, "rope", watch("rope", _rope_copies, mx.fast.rope)),
            (mx.fast, "scaled_dot_product_attention", watched_attention),
            (mx, "flatten", watch("reshape", reshapes, mx.flatten)),
            (mx, "unflatten", watch("reshape", reshapes, mx.unflatten)),
        ):
            stack.enter_context(mock.patch.object(module, name, replacement))
        yield
