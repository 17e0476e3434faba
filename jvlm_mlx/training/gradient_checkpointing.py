"""Layers whose activations are computed a second time on the way back, instead of kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

from ..model import Model
from ..model.decoder import DecoderLayer
from ..model.vision import VisionLayer


class _CheckpointedTowerLayer(VisionLayer):
    def __call__(self, x: mx.array) -> mx.array:
        return _checkpointed(self, super().__call__, x)


class _CheckpointedDecoderLayer(DecoderLayer):
    def __call__(self, x: mx.array, mask: Any, cache: Any, offset: Any) -> mx.array:
        # Only arrays may be arguments of what is differentiated.
        forward = super().__call__
        return _checkpointed(self, lambda x: forward(x, mask, cache, offset), x)


def _checkpointed(layer: Any, forward: Any, x: mx.array) -> mx.array:
    def compute(parameters: Any, x: mx.array) -> mx.array:
        layer.update(parameters)
        y: mx.array = forward(x)
        return y

    result: mx.array = mx.checkpoint(compute)(layer.trainable_parameters(), x)
    return result


@contextmanager
def checkpointed_layers(model: Model, enabled: bool) -> Iterator[None]:
    """Let the layers of tower and decoder keep nothing but their inputs, for a while.

    Only this model's layers are changed: they get another class, and their own back.
    """
    layers: list[tuple[Any, type]] = []
    if enabled:
        layers += [(layer, _CheckpointedTowerLayer) for layer in model.vision_tower.layers]
        layers += [(layer, _CheckpointedDecoderLayer) for layer in model.decoder.layers]
    before = [type(layer) for layer, _ in layers]
    try:
        for layer, checkpointed in layers:
            layer.__class__ = checkpointed
        yield
    finally:
        for (layer, _), own in zip(layers, before, strict=True):
            layer.__class__ = own
