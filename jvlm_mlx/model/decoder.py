"""The decoder: Qwen3, with fused projections and mlx-lm's RoPE and caches."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from .. import _mlx_lm
from ..config.model_config import DecoderConfig
from . import ops
from .layers import Block, Embedding, make_norm
from .ops import Mask

HostArray = npt.NDArray[Any]


class Decoder(nn.Module):
    """From embeddings to normalized hidden states.

    The checkpoints keep two embedding tables: one for the vocabulary and one for added tokens.
    Here they are one table, joined at load, so that a decode step is a single lookup.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embedding = Embedding(config.embedding_rows, config.hidden_size)
        rope = _mlx_lm.initialize_rope(
            config.block.attention.head_dim,
            base=config.rope.theta,
            traditional=False,
            scaling_config=config.rope.scaling,
            max_position_embeddings=config.context_size,
        )
        self.layers = [
            Block(config.hidden_size, config.block, rope) for _ in range(config.num_hidden_layers)
        ]
        self.norm = make_norm(config.hidden_size, config.block.norm)
        self._scale = config.hidden_size**0.5 if config.scale_embeddings else None
        self._num_heads = config.block.attention.num_attention_heads

    def embed(self, input_ids: mx.array | HostArray) -> mx.array:
        """Look up tokens (B, L); negative ids are padding and read as 0. (B, L, hidden_size)."""
        if not isinstance(input_ids, mx.array):
            input_ids = mx.array(np.maximum(input_ids, 0))
        elif input_ids.shape[-1] > 1:
            # A single token, as of a decode step, is never padding: one kernel less.
            input_ids = mx.maximum(input_ids, 0)
        return self.embedding(input_ids)

    def __call__(
        self,
        embeddings: mx.array,
        cache: Sequence[Any] | None = None,
        left_padding: mx.array | None = None,
    ) -> mx.array:
        """Run all layers.

        Args:
            embeddings: (B, L, hidden_size) of tokens, images merged in.
            cache: one cache of mlx-lm for each layer, which is extended in place. Caches of a
                left-padded batch know their padding themselves.
            left_padding: (B,) padding tokens in front of each row; only without a cache.

        Returns:
            (B, L, hidden_size), normalized, ready for the head.
        """
        x = embeddings if self._scale is None else embeddings * self._scale
        length = x.shape[1]
        mask: Mask
        offset: int | mx.array
        if cache is not None:
            # A batch's offset is an array, which mlx-lm 0.31 changes in place as soon as the
            # first layer has been through: every layer must still see what it was.
            mask, offset = _mlx_lm.create_attention_mask(x, cache[0]), copy.copy(cache[0].offset)
            if not hasattr(cache[0], "bits"):
                mask = ops.decoding_mask(mask, (len(x), self._num_heads, length))
        elif left_padding is not None:
            # Positions count from 0 at the first real token; padding has negative ones.
            mask, offset = padded_causal_mask(length, left_padding), -left_padding
        else:
            mask, offset = "causal" if length > 1 else None, 0
        for index, layer in enumerate(self.layers):
            x = layer(x, mask, cache[index] if cache is not None else None, offset)
        return self.norm(x)

    def attention_weights(self, embeddings: mx.array, first: int) -> Iterator[mx.array]:
        """Yield who attends to what in each layer, (B, H, L - first, L) float32.

        For looking into a model: a second pass beside the fast one.

        Args:
            embeddings: (B, L, hidden_size) of tokens, images merged in; no padding.
            first: the first token whose attention is asked for.
        """
        x = embeddings if self._scale is None else embeddings * self._scale
        for layer in self.layers:
            yield layer.attention.weights(layer.attention_norm(x), first)
            x = layer(x, "causal" if x.shape[1] > 1 else None)


def padded_causal_mask(length: int, left_padding: mx.array) -> mx.array:
    """Return who may look at whom, (B, 1, L, L), True for yes.

    Four tokens of which the first is padding:

        1 . . .     padding sees only itself, so that its softmax is not empty
        . 1 . .
        . 1 1 .
        . 1 1 1
    """
    positions = mx.arange(length)
    causal = positions[:, None] >= positions
    real = positions >= left_padding[:, None, None, None]
    return (causal & real) | (positions[:, None] == positions)
