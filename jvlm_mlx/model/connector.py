"""The connector: each window of 2 x 2 patches becomes one vector of the decoder's width."""

import mlx.core as mx
import mlx.nn as nn

from ..config.blocks import AttentionConfig
from ..config.model_config import ConnectorConfig
from .layers import MLP


class AttentionPooling(nn.Module):
    """The mean of a window's vectors asks, the vectors themselves answer.

    Source: `pooling` of the original (`attention_meanq`). Its heads have config of their own.
    """

    def __init__(self, input_size: int, output_size: int, config: AttentionConfig) -> None:
        super().__init__()
        query_bias, *key_value_biases = config.projection_biases
        self.q = nn.Linear(input_size, config.query_size, query_bias)
        self.kv = nn.Linear(input_size, 2 * config.key_value_size, any(key_value_biases))
        self.out = nn.Linear(config.query_size, output_size, config.output_bias)
        self._config = config

    def __call__(self, windows: mx.array) -> mx.array:
        """Map windows (W, p, input_size) of p vectors each to (W, output_size)."""
        config = self._config
        # What hangs over the edge of the grid is zero and counts in the mean.
        queries = self.q(windows.mean(axis=1))
        # (W, H D) -> (W, H, 1, D)
        queries = mx.unflatten(queries, -1, (config.num_attention_heads, 1, config.head_dim))
        # (W, p, 2 H D) -> (W, p, 2, H, D) -> (2, W, H, p, D)
        shape = (2, config.num_key_value_heads, config.head_dim)
        keys, values = mx.unflatten(self.kv(windows), -1, shape).transpose(2, 0, 3, 1, 4)
        pooled = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=config.scale)
        # (W, H, 1, D) -> (W, H D)
        return self.out(mx.flatten(pooled, 1))


class Connector(nn.Module):
    """Padding marks, attention pooling and projection, for the windows that are asked for."""

    def __init__(self, feature_size: int, pooled_size: int, config: ConnectorConfig) -> None:
        """Build the connector.

        Args:
            feature_size: width of the tower's features.
            pooled_size: width after pooling, the tower's hidden size.
            config: everything else.
        """
        super().__init__()
        if config.pad_embed:
            self.pad_embed = mx.zeros((2, feature_size))
        self.pooling = AttentionPooling(feature_size, pooled_size, config.pooling)
        self.projector = MLP(pooled_size, config.output_size, config.projector)
        self._config = config

    def pool(
        self, features: mx.array, image_masks: mx.array, patches: mx.array, inside: mx.array
    ) -> mx.array:
        """Pool windows of patches.

        Args:
            features: (T, P, feature_size) from the tower.
            image_masks: (T, P); 1 for a patch of the image, 0 for padding, between or below
                for partial padding. The processor gives -1 to the whole last tile of each
                image; the weights were trained with that, so it must be marked as well.
            patches: (W, p) rows of the flattened T P patches.
            inside: (W, p) False for what lies outside the grid and counts as zero.

        Returns:
            (W, pooled size).
        """
        # (T, P, D) -> (T P, D) -> (W, p, D)
        windows = mx.flatten(features, 0, 1)[patches]
        if self._config.pad_embed:
            masks = mx.flatten(image_masks)[patches]
            # Row 0 marks padding, row 1 whatever else is below 1, row 2 nothing.
            marks = mx.concatenate([self.pad_embed, mx.zeros_like(self.pad_embed[:1])])
            windows = windows + marks[mx.where(masks == 0, 0, mx.where(masks < 1, 1, 2))]
        # The grid is extended by zeros only after the marks were added.
        windows = mx.where(inside[..., None], windows, mx.zeros((), windows.dtype))
        return self.pooling(windows)

    def __call__(
        self, features: mx.array, image_masks: mx.array, patches: mx.array, inside: mx.array
    ) -> mx.array:
        """Pool windows and project them to the decoder: (W, output_size). Arguments as `pool`."""
        return self.projector(self.pool(features, image_masks, patches, inside))
