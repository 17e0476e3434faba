"""What vision tower, connector and decoder are built of: norm, attention, MLP, block.

Parameters start as zeros (norms as ones): they are loaded, or set by whoever trains from
nothing. So building a model draws no random numbers, and allocates nothing until it is evaluated.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..config.blocks import AttentionConfig, BlockConfig, MLPConfig, NormConfig
from . import ops
from .ops import Mask


class Linear(nn.Linear):
    """A linear layer that draws no random numbers."""

    def __init__(self, input_size: int, output_size: int, bias: bool) -> None:
        nn.Module.__init__(self)
        self.weight = mx.zeros((output_size, input_size))
        if bias:
            self.bias = mx.zeros((output_size,))


class Embedding(nn.Embedding):
    """An embedding table that draws no random numbers."""

    def __init__(self, rows: int, size: int) -> None:
        nn.Module.__init__(self)
        self.weight = mx.zeros((rows, size))


def quantized_layer(
    layer: nn.Linear | nn.Embedding, *, group_size: int, bits: int, mode: str
) -> nn.Module:
    """Return what takes the place of a layer whose weight is stored packed: zeros until loaded.

    MLX's own constructors draw a random weight and quantize it.
    """
    kind = nn.QuantizedEmbedding if isinstance(layer, nn.Embedding) else nn.QuantizedLinear
    packed: Any = kind.__new__(kind)
    nn.Module.__init__(packed)
    packed.group_size, packed.bits, packed.mode = group_size, bits, mode
    rows, size = layer.weight.shape
    groups, is_affine = (rows, size // group_size), mode == "affine"
    packed.weight = mx.zeros((rows, size * bits // 32), mx.uint32)
    packed.scales = mx.zeros(groups, layer.weight.dtype if is_affine else mx.uint8)
    packed.biases = mx.zeros(groups, layer.weight.dtype) if is_affine else None
    if isinstance(layer, nn.Embedding):
        packed.num_embeddings, packed.dims = rows, size
    elif "bias" in layer:
        packed.bias = layer.bias
    packed.freeze()
    result: nn.Module = packed
    return result


def make_norm(size: int, config: NormConfig) -> nn.Module:
    """Return a LayerNorm or RMSNorm over the last axis; both compute in float32."""
    if config.kind == "rms":
        return nn.RMSNorm(size, eps=config.eps)
    return nn.LayerNorm(size, eps=config.eps, bias=config.bias)


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values.

    Query and key heads may have a norm each, and then rotary positions. The vision tower has
    neither; the decoder has both.
    """

    def __init__(
        self, hidden_size: int, config: AttentionConfig, rope: nn.Module | None = None
    ) -> None:
        super().__init__()
        width = config.query_size + 2 * config.key_value_size
        self.qkv = Linear(hidden_size, width, config.has_projection_bias)
        self.out = Linear(config.query_size, hidden_size, config.output_bias)
        if config.q_norm:
            self.q_norm = make_norm(config.head_dim, config.q_norm)
        if config.k_norm:
            self.k_norm = make_norm(config.head_dim, config.k_norm)
        if rope is not None:
            self.rope = rope
        self._config = config
        self._has_joint_norm = (
            config.q_norm == config.k_norm
            and config.q_norm is not None
            and config.q_norm.kind == "rms"
        )
        self._head_weights: tuple[mx.array, ...] = ()

    def __call__(
        self,
        x: mx.array,
        mask: Mask = None,
        cache: Any | None = None,
        offset: int | mx.array = 0,
    ) -> mx.array:
        """Map (B, L, hidden_size) to the same shape.

        Args:
            x: (B, L, hidden_size).
            mask: who sees whom.
            cache: a cache of mlx-lm, which the new keys and values are added to.
            offset: position of the first token, for all rows or (B,) for each.
        """
        config = self._config
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        # (B, L, (H + 2 G) D) -> (B, L, H + 2 G, D)
        qkv = mx.unflatten(self.qkv(x), -1, (heads + 2 * groups, config.head_dim))
        queries, keys = self._queries_and_keys(qkv, offset)
        # (B, L, G, D) -> (B, G, L, D)
        values = qkv[:, :, heads + groups :].transpose(0, 2, 1, 3)
        if cache is not None:
            keys, values = cache.update_and_fetch(keys, values)
        x = ops.attention(
            queries, keys, values,
            scale=config.scale, mask=mask, cache=cache, training=self.training,
        )  # fmt: skip
        # (B, H, L, D) -> (B, L, H, D) -> (B, L, H D)
        return self.out(mx.flatten(x.transpose(0, 2, 1, 3), -2))

    def weights(self, x: mx.array, first: int, offset: int = 0) -> mx.array:
        """Return who attends to what, written out: for looking into a model, not for speed.

        Args:
            x: (B, L, hidden_size), as in a call with a causal mask and without a cache.
            first: the first token whose attention is asked for.
            offset: position of the first token of `x`.

        Returns:
            (B, H, L - first, L) float32; the weights of a token sum to 1.
        """
        config = self._config
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        qkv = mx.unflatten(self.qkv(x), -1, (heads + 2 * groups, config.head_dim))
        queries, keys = self._queries_and_keys(qkv, offset)
        # (B, G, L, D) -> (B, H, L, D): each key head serves several query heads
        keys = mx.repeat(keys, heads // groups, axis=1)
        queries, keys = queries[:, :, first:].astype(mx.float32), keys.astype(mx.float32)
        positions = mx.arange(x.shape[1])
        scores = config.scale * (queries @ keys.swapaxes(-1, -2))
        scores = mx.where(positions[first:, None] >= positions, scores, -mx.inf)
        return mx.softmax(scores, axis=-1)

    def _queries_and_keys(self, qkv: mx.array, offset: int | mx.array) -> tuple[mx.array, mx.array]:
        """Return queries (B, H, L, D) and keys (B, G, L, D), normalized and rotated.

        As few kernels as possible, since a decode step is little else: one norm, one product and
        one rotation for queries and keys together. Values are normalized with them, and that is
        thrown away: a norm of some of the heads would copy them first.
        """
        config = self._config
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        if self._has_joint_norm and not self.training:
            assert config.q_norm is not None
            normalized = mx.fast.rms_norm(qkv, None, config.q_norm.eps)
            both = normalized[:, :, : heads + groups] * self._joined_head_weights()
            # (B, L, H + G, D) -> (B, H + G, L, D)
            both = both.transpose(0, 2, 1, 3)
            if "rope" in self:
                both = self.rope(both, offset=offset)
            queries, keys = mx.split(both, (heads,), axis=1)
            return queries, keys
        both = qkv[:, :, : heads + groups].transpose(0, 2, 1, 3)
        queries, keys = mx.split(both, (heads,), axis=1)
        if config.q_norm:
            queries = self.q_norm(queries)
        if config.k_norm:
            keys = self.k_norm(keys)
        if "rope" in self:
            queries, keys = self.rope(queries, offset=offset), self.rope(keys, offset=offset)
        return queries, keys

    def prepare(self) -> None:
        """Derive now what would otherwise be derived from the weights at the first call."""
        if self._has_joint_norm:
            self._joined_head_weights()

    def _joined_head_weights(self) -> mx.array:
        """Return the weights of the norms of all query and key heads, (H + G, D).

        They are joined again only after they were replaced.
        """
        parts = self.q_norm.weight, self.k_norm.weight
        if not self._head_weights or any(
            kept is not part for kept, part in zip(self._head_weights, parts, strict=False)
        ):
            config = self._config
            sizes = config.num_attention_heads, config.num_key_value_heads
            joined = mx.concatenate(
                [
                    mx.broadcast_to(part, (size, config.head_dim))
                    for part, size in zip(parts, sizes, strict=True)
                ]
            )
            self._head_weights = (*parts, joined)
        return self._head_weights[-1]


class MLP(nn.Module):
    """Two projections around an activation.

    A gated MLP's `up` holds the value half first and the gate half second:
    `down(activation(second) * first)`. This is the order of the checkpoints, in the decoder and
    in the connector, and the reverse of what most fused MLPs do.
    """

    def __init__(self, input_size: int, output_size: int, config: MLPConfig) -> None:
        super().__init__()
        halves = 2 if config.gated else 1
        self.up = Linear(input_size, halves * config.intermediate_size, config.bias)
        self.down = Linear(config.intermediate_size, output_size, config.bias)
        self._config = config

    def __call__(self, x: mx.array) -> mx.array:
        """Map (..., input_size) to (..., output_size)."""
        return self.down(self.hidden(x))

    def hidden(self, x: mx.array) -> mx.array:
        """Return what `down` projects, (..., intermediate_size)."""
        x = self.up(x)
        if self._config.gated:
            value, gate = mx.split(x, 2, axis=-1)
            return ops.gated(self._config.activation, gate, value)
        return ops.ACTIVATIONS[self._config.activation](x)


class Block(nn.Module):
    """One pre-norm transformer block of the tower or the decoder."""

    def __init__(
        self, hidden_size: int, config: BlockConfig, rope: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.attention_norm = make_norm(hidden_size, config.norm)
        self.attention = Attention(hidden_size, config.attention, rope)
        self.mlp_norm = make_norm(hidden_size, config.norm)
        self.mlp = MLP(hidden_size, hidden_size, config.mlp)

    def __call__(
        self,
        x: mx.array,
        mask: Mask = None,
        cache: Any | None = None,
        offset: int | mx.array = 0,
    ) -> mx.array:
        """Map (B, L, hidden_size) to the same shape; arguments as for the attention."""
        x = x + self.attention(self.attention_norm(x), mask, cache, offset)
        return x + self.mlp(self.mlp_norm(x))
