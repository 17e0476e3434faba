"""The connector: each window of 2 x 2 patches becomes one vector of the decoder's width."""

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..config.blocks import AttentionConfig
from ..config.model_config import ConnectorConfig
from . import ops
from .layers import MLP, Linear


class AttentionPooling(nn.Module):
    """Attention pooling: the query is the window's mean, keys and values are its patches.

    Source: `pooling` of the reference implementation (`attention_meanq`). Number and size of its
    heads are configured apart from the tower's.
    """

    def __init__(self, input_size: int, output_size: int, config: AttentionConfig) -> None:
        super().__init__()
        query_bias, *key_value_biases = config.projection_biases
        self.q = Linear(input_size, config.query_size, query_bias)
        self.kv = Linear(input_size, 2 * config.key_value_size, any(key_value_biases))
        self.out = Linear(config.query_size, output_size, config.output_bias)
        self._config = config

    def __call__(self, windows: mx.array) -> mx.array:
        """Map windows (W, p, input_size) of p patches each to (W, output_size)."""
        queries, keys, values = self._heads(windows)
        pooled = ops.attention(queries, keys, values, scale=self._config.scale)
        # (W, H, 1, D) -> (W, H D)
        return self.out(mx.flatten(pooled, 1))

    def weights(self, windows: mx.array) -> mx.array:
        """Return what each patch of windows (W, p, input_size) counts for, (W, H, p) float32.

        Attention written out: for looking into a model, not for speed.
        """
        queries, keys, _ = self._heads(windows)
        # (W, G, p, D) -> (W, H, p, D)
        keys = mx.repeat(keys, queries.shape[1] // keys.shape[1], axis=1).astype(mx.float32)
        scores = self._config.scale * (queries.astype(mx.float32) @ keys.swapaxes(-1, -2))
        return mx.softmax(scores[:, :, 0], axis=-1)

    def _heads(self, windows: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """Return queries (W, H, 1, D), and keys and values (W, G, p, D), of windows."""
        config = self._config
        # Patches beyond the edge of the grid are zeros and count in the mean. In float32: four
        # float16 numbers have a sum that float16 may not hold.
        queries = self.q(windows.astype(mx.float32).mean(axis=1).astype(windows.dtype))
        # (W, H D) -> (W, H, 1, D)
        queries = mx.unflatten(queries, -1, (config.num_attention_heads, 1, config.head_dim))
        # (W, p, 2 H D) -> (W, p, 2, H, D) -> (2, W, H, p, D)
        shape = (2, config.num_key_value_heads, config.head_dim)
        keys, values = mx.unflatten(self.kv(windows), -1, shape).transpose(2, 0, 3, 1, 4)
        return queries, keys, values


class Connector(nn.Module):
    """Padding embedding, attention pooling and projection, for the windows that are asked for."""

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

    @property
    def dtype(self) -> mx.Dtype | None:
        """What it computes in; None if all its weights are packed and tell no dtype."""
        arrays: dict[str, mx.array] = dict(tree_flatten(self.parameters()))
        floats = (
            array.dtype for array in arrays.values() if mx.issubdtype(array.dtype, mx.floating)
        )
        return next(floats, None)

    def windows(
        self, features: mx.array, image_masks: mx.array, patches: mx.array, inside: mx.array
    ) -> mx.array:
        """Return the patches of windows as they are pooled.

        Args:
            features: (T, P, feature_size) from the tower.
            image_masks: (T, P); 1 for a patch of the image, 0 for padding, between or below
                for partial padding. The processor gives -1 to the whole last tile of each
                image; the weights were trained with that, so it must count as partial padding.
            patches: (W, p) rows of the flattened T P patches.
            inside: (W, p) False for what lies outside the grid and counts as zero.

        Returns:
            (W, p, feature_size).
        """
        # The tower may compute in another dtype.
        features = features.astype(self.dtype or features.dtype)
        # (T, P, D) -> (T P, D) -> (W, p, D)
        windows = mx.flatten(features, 0, 1)[patches]
        if self._config.pad_embed:
            masks = mx.flatten(image_masks)[patches]
            # Row 0 is for padding, row 1 for whatever else is below 1, row 2 adds nothing.
            embeddings = mx.concatenate([self.pad_embed, mx.zeros_like(self.pad_embed[:1])])
            windows = windows + embeddings[mx.where(masks == 0, 0, mx.where(masks < 1, 1, 2))]
        # The grid is extended by zeros only after the padding embedding was added.
        return mx.where(inside[..., None], windows, mx.zeros((), windows.dtype))

    def pool(
        self, features: mx.array, image_masks: mx.array, patches: mx.array, inside: mx.array
    ) -> mx.array:
        """Pool windows of patches: (W, pooled size). Arguments as `windows`."""
        return self.pooling(self.windows(features, image_masks, patches, inside))

    def __call__(
        self, features: mx.array, image_masks: mx.array, patches: mx.array, inside: mx.array
    ) -> mx.array:
        """Pool windows and project them to the decoder: (W, output_size); see `windows`."""
        return self.projector(self.pool(features, image_masks, patches, inside))
