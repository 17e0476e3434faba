"""How large the numbers inside a model become, layer by layer: what decides whether float16 holds.

Modules are run step by step, for looking into a model and not for speed. Whatever a kernel would
write to memory in the type that is computed in is looked at; scores of attention never are, since
they stay in float32.
"""

from collections.abc import Iterator

import mlx.core as mx
import numpy as np

from .layers import MLP, Block
from .model import Model
from .ops import Mask

MAX_FLOAT16 = 65_504.0
HEADROOM = 2.0
"""How many times larger the numbers of other prompts and images may be."""


def float16_verdict(largest: float) -> str:
    """Return whether float16 holds numbers up to this one: `safe`, `close` or `overflows`."""
    if largest > MAX_FLOAT16:
        return "overflows"
    return "safe" if largest * HEADROOM <= MAX_FLOAT16 else "close"


def tower_activations(model: Model, pixel_values: mx.array) -> Iterator[tuple[int, mx.array]]:
    """Yield each layer and its largest magnitude, for tiles (T, P, patch values)."""
    tower = model.vision_tower
    x = tower.patch_embedding(pixel_values.astype(tower.dtype)) + tower.position_embedding
    for index, layer in enumerate(tower.layers):
        x, largest = _block(layer, x, None)
        yield index, largest


def connector_activations(
    model: Model, features: mx.array, image_masks: mx.array, patches: mx.array, inside: mx.array
) -> mx.array:
    """Return the largest magnitude in the connector; arguments as for a call of it."""
    connector = model.connector
    windows = connector.windows(features, image_masks, patches, inside)
    pooling = connector.pooling
    pooled = pooling(windows)
    return _largest(windows, pooling.kv(windows), pooled, *_mlp(connector.projector, pooled))


def decoder_activations(model: Model, embeddings: mx.array) -> Iterator[tuple[int, mx.array]]:
    """Yield each layer and its largest magnitude, for a prompt's embeddings (1, L, hidden_size)."""
    config = model.config.decoder
    x = embeddings * config.hidden_size**0.5 if config.scale_embeddings else embeddings
    for index, layer in enumerate(model.decoder.layers):
        x, largest = _block(layer, x, "causal" if x.shape[1] > 1 else None)
        yield index, largest


def _block(block: Block, x: mx.array, mask: Mask) -> tuple[mx.array, mx.array]:
    normed = block.attention_norm(x)
    attended = block.attention(normed, mask)
    between = x + attended
    hidden = block.mlp_norm(between)
    inside = _mlp(block.mlp, hidden)
    output = between + inside[-1]
    projected = block.attention.qkv(normed)
    return output, _largest(normed, projected, attended, between, hidden, *inside, output)


def _mlp(mlp: MLP, x: mx.array) -> list[mx.array]:
    hidden = mlp.hidden(x)
    return [mlp.up(x), hidden, mlp.down(hidden)]


def _largest(*arrays: mx.array) -> mx.array:
    """Return the largest magnitude of several arrays: () float32; infinite if one is not finite."""
    largest = mx.stack([mx.max(mx.abs(array.astype(mx.float32))) for array in arrays])
    finite = mx.stack([mx.all(mx.isfinite(array)) for array in arrays])
    return mx.where(mx.all(finite), mx.max(largest), mx.inf)


def largest_per_layer(layers: Iterator[tuple[int, mx.array]]) -> dict[int, float]:
    """Evaluate layer after layer, so that no more than one is in memory."""
    found = {}
    for index, largest in layers:
        mx.eval(largest)
        found[index] = float(np.array(largest))
    return found
