"""The vision tower: SigLIP2, from patches to the features of chosen layers."""

import mlx.core as mx
import mlx.nn as nn

from ..config.blocks import AttentionConfig, BlockConfig
from ..config.model_config import VisionConfig
from . import cpu
from .layers import MLP, make_norm


class VisionAttention(nn.Module):
    """Attention of every patch of a tile to every other, with biases and without positions."""

    def __init__(self, hidden_size: int, config: AttentionConfig) -> None:
        super().__init__()
        width = config.query_size + 2 * config.key_value_size
        self.qkv = nn.Linear(hidden_size, width, config.has_projection_bias)
        self.out = nn.Linear(config.query_size, hidden_size, config.output_bias)
        if config.q_norm:
            self.q_norm = make_norm(config.head_dim, config.q_norm)
        if config.k_norm:
            self.k_norm = make_norm(config.head_dim, config.k_norm)
        self._config = config

    def __call__(self, x: mx.array) -> mx.array:
        """Map (T, P, hidden_size) to the same shape; tiles do not see each other."""
        config = self._config
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        # (T, P, H D) -> (T, P, H, D) -> (T, H, P, D)
        qkv = mx.unflatten(self.qkv(x), -1, (heads + 2 * groups, config.head_dim))
        qkv = qkv.transpose(0, 2, 1, 3)
        queries, keys, values = mx.split(qkv, (heads, heads + groups), axis=1)
        if config.q_norm:
            queries = self.q_norm(queries)
        if config.k_norm:
            keys = self.k_norm(keys)
        if cpu.is_cpu_float32(queries) and self.training:
            x = cpu.differentiable_attention(queries, keys, values, config.scale, causal=False)
        elif cpu.is_cpu_float32(queries) and heads == groups:
            x = cpu.attention(queries, keys, values, config.scale)
        else:
            x = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=config.scale)
        # (T, H, P, D) -> (T, P, H, D) -> (T, P, H D)
        return self.out(mx.flatten(x.transpose(0, 2, 1, 3), -2))


class VisionLayer(nn.Module):
    """One pre-norm transformer block of the tower."""

    def __init__(self, hidden_size: int, config: BlockConfig) -> None:
        super().__init__()
        self.attention_norm = make_norm(hidden_size, config.norm)
        self.attention = VisionAttention(hidden_size, config.attention)
        self.mlp_norm = make_norm(hidden_size, config.norm)
        self.mlp = MLP(hidden_size, hidden_size, config.mlp)

    def __call__(self, x: mx.array) -> mx.array:
        """Map (T, P, hidden_size) to the same shape."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class VisionTower(nn.Module):
    """Patches of tiles in, concatenated hidden states of the feature layers out.

    Layers above the highest feature layer do not exist here, and neither does the final norm
    unless a feature is its output: nothing would read them. Source: `vision_model` of the
    original; the feature layers are counted in the list of all layer outputs and the final norm.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_embedding = nn.Linear(
            config.patch_values, config.hidden_size, config.patch_embedding_bias
        )
        self.position_embedding = mx.zeros((config.num_patches, config.hidden_size))
        self.layers = [
            VisionLayer(config.hidden_size, config.block) for _ in range(config.num_used_layers)
        ]
        if config.uses_final_norm:
            self.final_norm = make_norm(config.hidden_size, config.block.norm)
        self._config = config

    def hidden_states(self, pixel_values: mx.array) -> list[mx.array]:
        """Return what each feature layer gives, in the order of the config.

        Args:
            pixel_values: (T, P, patch values), normalized.

        Returns:
            One (T, P, hidden_size) for each feature layer.
        """
        # Weights may be quantized; the position table never is, so it tells the dtype.
        x = self.patch_embedding(pixel_values.astype(self.position_embedding.dtype))
        x = x + self.position_embedding
        states = {}
        for index, layer in enumerate(self.layers):
            x = layer(x)
            states[index] = x
        if self._config.uses_final_norm:
            states[self._config.num_hidden_layers] = self.final_norm(x)
        return [states[index] for index in self._config.feature_layers]

    def __call__(self, pixel_values: mx.array) -> mx.array:
        """Return the features of tiles.

        Args:
            pixel_values: (T, P, patch values), normalized.

        Returns:
            (T, P, feature_size). A tile whose values are all -1 gives zeros: that is how the
            original recognizes the padding of a batch, and so how it treats a black tile too.
        """
        features = mx.concatenate(self.hidden_states(pixel_values), axis=-1)
        filled = mx.any(pixel_values != -1, axis=(1, 2), keepdims=True)
        return features * filled.astype(features.dtype)
