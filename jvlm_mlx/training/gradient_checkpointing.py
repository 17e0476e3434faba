"""Layers whose activations are computed a second time on the way back, instead of kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

from ..model import Model
from ..model.layers import Block


class _CheckpointedBlock(Block):
    def __call__(
        self, x: mx.array, mask: Any = None, cache: Any = None, offset: Any = 0
    ) -> mx.array:
        forward = super().__call__

        # Only arrays may be arguments of what is differentiated.
        def compute(parameters: Any, x: mx.array) -> mx.array:
            self.update(parameters)
            return forward(x, mask, cache, offset)

        result: mx.array = mx.checkpoint(compute)(self.trainable_parameters(), x)
        return result


@contextmanager
def checkpointed_layers(model: Model, enabled: bool) -> Iterator[None]:
    """Let the layers of tower and decoder keep nothing but their inputs, for a while.

    Only this model's layers are changed: they get another class, and their own back.
    """
    layers = [*model.vision_tower.layers, *model.decoder.layers] if enabled else []
    try:
        for layer in layers:
            layer.__class__ = _CheckpointedBlock
        yield
    finally:
        for layer in layers:
            layer.__class__ = Block
