"""The KV cache of a request, plain, rotating or quantized, and that of rows decoded together.

All of them are mlx-lm's, one for each layer.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from .. import _mlx_lm
from ..errors import PromptError, RequestError
from ..model import Model
from .options import GenerationOptions


def check_window(prompt_tokens: int, options: GenerationOptions) -> None:
    """Refuse a prompt that does not fit into the window of `max_kv_size`.

    A rotating cache keeps the whole prompt and rotates among the answer's tokens only. mlx-lm's
    masks do not know about kept tokens during a prefill in chunks, so the prompt must fit into
    the window: then no mask is needed, and only single tokens ever rotate.

    Raises:
        PromptError: says how large the window must be.
    """
    if options.max_kv_size is not None and prompt_tokens >= options.max_kv_size:
        raise PromptError(
            f"max_kv_size is {options.max_kv_size}, but the prompt has {prompt_tokens} tokens and"
            f" stays in the window: set it to more than {prompt_tokens}, or lower max_crops"
        )


def make_cache(model: Model, prompt_tokens: int, options: GenerationOptions) -> list[Any]:
    """Return an empty cache for a prompt of `prompt_tokens` tokens."""
    if options.max_kv_size is None:
        return model.make_cache()
    return [
        _mlx_lm.RotatingKVCache(max_size=options.max_kv_size, keep=prompt_tokens)
        for _ in model.layers
    ]


def kv_group_size(model: Model, options: GenerationOptions) -> int:
    """Return how many values of a head share a scale in a quantized cache.

    Raises:
        RequestError: no group size of mlx divides the head size.
    """
    head_dim = model.config.decoder.block.attention.head_dim
    sizes = (options.kv_group_size,) if options.kv_group_size else (64, 32, 128)
    for size in sizes:
        if head_dim % size == 0:
            return size
    raise RequestError(
        f"kv_bits: a head of {head_dim} values cannot be split into groups of"
        f" {' or '.join(map(str, sizes))}; leave kv_bits out"
    )


def quantize(cache: list[Any], bits: int, group_size: int) -> None:
    """Quantize a plain cache in place."""
    cache[:] = [layer.to_quantized(group_size=group_size, bits=bits) for layer in cache]


def can_batch(cache: Sequence[Any]) -> bool:
    """Return whether rows with this cache may share one with others.

    mlx-lm has no batches of quantized caches, nor of rotating ones that keep a prompt.
    """
    return all(type(layer) in (_mlx_lm.KVCache, _mlx_lm.BatchKVCache) for layer in cache)


def joined(one: list[Any], other: list[Any]) -> list[Any]:
    """Return one batched cache of the rows of two; either may be plain, for a single row."""
    if not any(isinstance(cache[0], _mlx_lm.BatchKVCache) for cache in (one, other)):
        return [_mlx_lm.BatchKVCache.merge(layers) for layers in zip(one, other, strict=True)]
    batched = [_batched(cache) for cache in (one, other)]
    for layer, more in zip(*batched, strict=True):
        layer.extend(more)
    return batched[0]


def keep_rows(cache: list[Any], rows: Sequence[int]) -> None:
    """Drop all other rows of a batched cache, in place."""
    indices = mx.array(list(rows))
    for layer in cache:
        layer.filter(indices)


def _batched(cache: list[Any]) -> list[Any]:
    if isinstance(cache[0], _mlx_lm.BatchKVCache):
        return cache
    return [_mlx_lm.BatchKVCache.merge([layer]) for layer in cache]
