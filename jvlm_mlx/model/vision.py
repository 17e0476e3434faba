"""The vision tower: SigLIP2, from patches to the features of chosen layers."""

import mlx.core as mx
import mlx.nn as nn

from ..config.model_config import VisionConfig
from .layers import Block, Linear, make_norm


class VisionTower(nn.Module):
    """Patches of tiles in, concatenated hidden states of the feature layers out.

    Layers above the highest feature layer do not exist here, and neither does the final norm
    unless a feature is its output: nothing would read them. Source: `vision_model` of the
    reference implementation, which counts the feature layers in the list of all layer outputs
    and the final norm. Attention is full within a tile, without rotary positions.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_embedding = Linear(
            config.patch_values, config.hidden_size, config.patch_embedding_bias
        )
        self.position_embedding = mx.zeros((config.num_patches, config.hidden_size))
        self.layers = [
            Block(config.hidden_size, config.block) for _ in range(config.num_used_layers)
        ]
        if config.uses_final_norm:
            self.final_norm = make_norm(config.hidden_size, config.block.norm)
        self._config = config

    @property
    def dtype(self) -> mx.Dtype:
        """What it computes in. Weights may be packed; the position table never is."""
        return self.position_embedding.dtype

    def hidden_states(self, pixel_values: mx.array) -> list[mx.array]:
        """Return the output of each feature layer, in the order of the config.

        Args:
            pixel_values: (T, P, patch values), normalized.

        Returns:
            One (T, P, hidden_size) for each feature layer.
        """
        x = self.patch_embedding(pixel_values.astype(self.dtype))
        x = x + self.position_embedding
        states = {}
        for index, layer in enumerate(self.layers):
            x = layer(x)
            states[index] = x
        states[self._config.num_hidden_layers] = (
            self.final_norm(x) if self._config.uses_final_norm else x
        )
        return [states[index] for index in self._config.feature_layers]

    def __call__(self, pixel_values: mx.array) -> mx.array:
        """Return the features of tiles.

        Args:
            pixel_values: (T, P, patch values), normalized.

        Returns:
            (T, P, feature_size). A tile whose values are all -1 gives zeros: that is how the
            reference implementation recognizes the padding of a batch, and so how it treats a
            black tile too.
        """
        features = mx.concatenate(self.hidden_states(pixel_values), axis=-1)
        filled = mx.any(pixel_values != -1, axis=(1, 2), keepdims=True)
        return features * filled.astype(features.dtype)
