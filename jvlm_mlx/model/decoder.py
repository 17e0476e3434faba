"""The decoder: Qwen3, with fused projections and mlx-lm's RoPE and caches."""

import copy
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .._mlx_lm import create_attention_mask, initialize_rope, scaled_dot_product_attention
from ..config.blocks import AttentionConfig
from ..config.model_config import DecoderConfig
from . import cpu
from .layers import MLP, make_norm

Mask = mx.array | str | None


class DecoderAttention(nn.Module):
    """Causal grouped-query attention with a norm on each query and key head, then RoPE."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        attention = config.block.attention
        width = attention.query_size + 2 * attention.key_value_size
        self.qkv = nn.Linear(config.hidden_size, width, attention.has_projection_bias)
        self.out = nn.Linear(attention.query_size, config.hidden_size, attention.output_bias)
        if attention.q_norm:
            self.q_norm = make_norm(attention.head_dim, attention.q_norm)
        if attention.k_norm:
            self.k_norm = make_norm(attention.head_dim, attention.k_norm)
        self.rope = initialize_rope(
            attention.head_dim,
            base=config.rope_theta,
            traditional=False,
            scaling_config=config.rope_scaling,
            max_position_embeddings=config.context_size,
        )
        self._config: AttentionConfig = attention

    def __call__(
        self, x: mx.array, mask: Mask, cache: Any | None, offset: int | mx.array
    ) -> mx.array:
        """Map (B, L, hidden_size) to the same shape.

        Args:
            x: (B, L, hidden_size).
            mask: as `mx.fast.scaled_dot_product_attention` takes it.
            cache: a cache of mlx-lm, which the new keys and values are added to.
            offset: position of the first token, for all rows or (B,) for each.
        """
        config = self._config
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        # (B, L, H D) -> (B, L, H, D) -> (B, H, L, D)
        qkv = mx.unflatten(self.qkv(x), -1, (heads + 2 * groups, config.head_dim))
        qkv = qkv.transpose(0, 2, 1, 3)
        queries, keys, values = mx.split(qkv, (heads, heads + groups), axis=1)
        if config.q_norm:
            queries = self.q_norm(queries)
        if config.k_norm:
            keys = self.k_norm(keys)
        queries, keys = self.rope(queries, offset=offset), self.rope(keys, offset=offset)
        if cache is not None:
            keys, values = cache.update_and_fetch(keys, values)
        if self.training and cpu.is_cpu_float32(queries) and cache is None and mask == "causal":
            x = cpu.differentiable_attention(queries, keys, values, config.scale, causal=True)
        else:
            x = scaled_dot_product_attention(
                queries, keys, values, cache=cache, scale=config.scale, mask=mask
            )
        # (B, H, L, D) -> (B, L, H, D) -> (B, L, H D)
        return self.out(mx.flatten(x.transpose(0, 2, 1, 3), -2))


class DecoderLayer(nn.Module):
    """One pre-norm transformer block of the decoder."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.attention_norm = make_norm(config.hidden_size, config.block.norm)
        self.attention = DecoderAttention(config)
        self.mlp_norm = make_norm(config.hidden_size, config.block.norm)
        self.mlp = MLP(config.hidden_size, config.hidden_size, config.block.mlp)

    def __call__(
        self, x: mx.array, mask: Mask, cache: Any | None, offset: int | mx.array
    ) -> mx.array:
        """Map (B, L, hidden_size) to the same shape; arguments as for the attention."""
        x = x + self.attention(self.attention_norm(x), mask, cache, offset)
        return x + self.mlp(self.mlp_norm(x))


class Decoder(nn.Module):
    """From embeddings to normalized hidden states.

    The checkpoints keep two embedding tables: one for the vocabulary and one for added tokens.
    Here they are one table, joined at load, so that a decode step is a single lookup.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        rows = config.embedding_size + config.additional_vocab_size
        self.embedding = nn.Embedding(rows, config.hidden_size)
        self.layers = [DecoderLayer(config) for _ in range(config.num_hidden_layers)]
        self.norm = make_norm(config.hidden_size, config.block.norm)
        self._scale = config.hidden_size**0.5 if config.scale_embeddings else None

    def embed(self, input_ids: mx.array) -> mx.array:
        """Look up tokens (B, L); negative ids are padding and read as 0. (B, L, hidden_size)."""
        return self.embedding(mx.maximum(input_ids, 0))

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
            mask, offset = create_attention_mask(x, cache[0]), copy.copy(cache[0].offset)
        elif left_padding is not None:
            # Positions count from 0 at the first real token; padding has negative ones.
            mask, offset = padded_causal_mask(length, left_padding), -left_padding
        else:
            mask, offset = "causal" if length > 1 else None, 0
        for index, layer in enumerate(self.layers):
            x = layer(x, mask, cache[index] if cache is not None else None, offset)
        return self.norm(x)


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
