"""The vision tower: SigLIP2, from patches to the features of chosen layers."""

import mlx.core as mx
import mlx.nn as nn

from ..config.blocks import AttentionSettings, BlockSettings
from ..config.model_config import TowerSettings
from . import cpu
from .layers import MLP, make_norm


class TowerAttention(nn.Module):
    """Attention of every patch of a tile to every other, with biases and without positions."""

    def __init__(self, hidden_size: int, settings: AttentionSettings) -> None:
        super().__init__()
        width = settings.query_size + 2 * settings.key_value_size
        self.qkv = nn.Linear(hidden_size, width, settings.has_projection_bias)
        self.out = nn.Linear(settings.query_size, hidden_size, settings.output_bias)
        if settings.q_norm:
            self.q_norm = make_norm(settings.head_dim, settings.q_norm)
        if settings.k_norm:
            self.k_norm = make_norm(settings.head_dim, settings.k_norm)
        self._settings = settings

    def __call__(self, x: mx.array) -> mx.array:
        """Map (T, P, hidden_size) to the same shape; tiles do not see each other."""
        settings = self._settings
        heads, groups = settings.num_attention_heads, settings.num_key_value_heads
        # (T, P, H D) -> (T, P, H, D) -> (T, H, P, D)
        qkv = mx.unflatten(self.qkv(x), -1, (heads + 2 * groups, settings.head_dim))
        qkv = qkv.transpose(0, 2, 1, 3)
        queries, keys, values = mx.split(qkv, (heads, heads + groups), axis=1)
        if settings.q_norm:
            queries = self.q_norm(queries)
        if settings.k_norm:
            keys = self.k_norm(keys)
        if cpu.is_cpu_float32(queries) and self.training:
            x = cpu.differentiable_attention(queries, keys, values, settings.scale, causal=False)
        elif cpu.is_cpu_float32(queries) and heads == groups:
            x = cpu.attention(queries, keys, values, settings.scale)
        else:
            x = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=settings.scale)
        # (T, H, P, D) -> (T, P, H, D) -> (T, P, H D)
        return self.out(mx.flatten(x.transpose(0, 2, 1, 3), -2))


class TowerLayer(nn.Module):
    """One pre-norm transformer block of the tower."""

    def __init__(self, hidden_size: int, settings: BlockSettings) -> None:
        super().__init__()
        self.attention_norm = make_norm(hidden_size, settings.norm)
        self.attention = TowerAttention(hidden_size, settings.attention)
        self.mlp_norm = make_norm(hidden_size, settings.norm)
        self.mlp = MLP(hidden_size, hidden_size, settings.mlp)

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

    def __init__(self, settings: TowerSettings) -> None:
        super().__init__()
        self.patch_embedding = nn.Linear(
            settings.patch_values, settings.hidden_size, settings.patch_embedding_bias
        )
        self.position_embedding = mx.zeros((settings.num_patches, settings.hidden_size))
        self.layers = [
            TowerLayer(settings.hidden_size, settings.block)
            for _ in range(settings.num_used_layers)
        ]
        if settings.uses_final_norm:
            self.final_norm = make_norm(settings.hidden_size, settings.block.norm)
        self._settings = settings

    def hidden_states(self, pixel_values: mx.array) -> list[mx.array]:
        """Return what each feature layer gives, in the order of the settings.

        Args:
            pixel_values: (T, P, patch values), normalised.

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
        if self._settings.uses_final_norm:
            states[self._settings.num_hidden_layers] = self.final_norm(x)
        return [states[index] for index in self._settings.feature_layers]

    def __call__(self, pixel_values: mx.array) -> mx.array:
        """Return the features of tiles.

        Args:
            pixel_values: (T, P, patch values), normalised.

        Returns:
            (T, P, feature_size). A tile whose values are all -1 gives zeros: that is how the
            original recognises the padding of a batch, and so how it treats a black tile too.
        """
        features = mx.concatenate(self.hidden_states(pixel_values), axis=-1)
        filled = mx.any(pixel_values != -1, axis=(1, 2), keepdims=True)
        return features * filled.astype(features.dtype)
