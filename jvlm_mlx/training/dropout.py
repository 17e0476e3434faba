"""Dropout whose choices follow from a key alone, and not from a state of the whole process.

So a resumed run leaves out what an uninterrupted one would have, and a layer that is computed
twice leaves out the same both times.
"""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..checkpoint.adapters import adapted_layers
from ..model import Model


class KeyedDropout(nn.Module):
    """Sets a share of the values to zero while training, and enlarges the rest to make up."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self._share = share
        self._key = mx.random.key(0)

    def set_key(self, key: mx.array) -> None:
        """Set what the choices follow from until the next call."""
        self._key = key

    def __call__(self, x: mx.array) -> mx.array:
        """Return values of the same shape and dtype."""
        if not self.training:
            return x
        kept = mx.random.bernoulli(1 - self._share, x.shape, key=self._key)
        return mx.where(kept, x * (1 / (1 - self._share)), mx.zeros((), x.dtype))


def use_keyed_dropout(model: Model, share: float) -> list[KeyedDropout]:
    """Replace the dropout of all adapters, and return what replaces it; nothing without any."""
    if not share:
        return []
    dropouts = [KeyedDropout(share) for _ in adapted_layers(model)]
    for layer, dropout in zip(adapted_layers(model).values(), dropouts, strict=True):
        layer.dropout = dropout
    return dropouts


def batch_key(*numbers: int) -> mx.array:
    """Return a key that follows from numbers alone, like seed, step and batch."""
    (seed,) = np.random.SeedSequence(numbers).generate_state(1, np.uint64).tolist()
    return mx.random.key(seed)


def set_keys(dropouts: Sequence[KeyedDropout], key: mx.array) -> None:
    """Give every dropout of a model a key of its own.

    Args:
        dropouts: always in the same order.
        key: of the batch.
    """
    if dropouts:
        for dropout, own in zip(dropouts, mx.random.split(key, len(dropouts)), strict=True):
            dropout.set_key(own)
