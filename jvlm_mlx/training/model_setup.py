"""A model made ready for training: frozen modules, adapters, dtypes, dropout, checkpointing."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..checkpoint.adapters import (
    AdapterConfig,
    adapted_layers,
    add_adapters,
    floating,
    linear_layers,
    load_adapter_weights,
)
from ..config.dtypes import FLOAT_DTYPES
from ..errors import RequestError
from ..model import Model
from ..model.layers import Block
from .optimizer import flat, tree
from .training_config import MODULES, TrainingConfig, module_of


def prepare_model(
    model: Model, config: TrainingConfig, adapter: Path | None = None
) -> AdapterConfig | None:
    """Freeze all that shall not change, and add adapters if they are asked for.

    Args:
        model: as it was loaded, in float32 if its own weights are to be trained.
        config: of the run.
        adapter: folder of adapters to begin with; None begins with new ones.

    Returns:
        Of the adapters; None where the weights themselves are trained.

    Raises:
        RequestError: quantized weights would have to change, or no layer is left for adapters.
        CheckpointError: the adapters do not fit the model.
    """
    model.freeze()
    if config.is_full:
        _refuse_quantized(model)
        for name in (*MODULES, "lm_head"):
            if name in model and module_of(name) in config.trained_modules:
                model[name].unfreeze()
    trained = flat(model.trainable_parameters())
    dtype = FLOAT_DTYPES[config.dtype].mlx
    model.update(tree({
        path: array.astype(mx.float32 if path in trained else dtype)
        for path, array in floating(model)
    }))  # fmt: skip
    layers = None
    if not config.is_full:
        layers = new_adapter(model, config) if adapter is None else AdapterConfig.read(adapter)
        layers = replace(layers, dropout=config.dropout)
        add_adapters(model, layers, config.seed)
        if adapter is not None:
            load_adapter_weights(model, adapter)
    mx.eval(model.parameters())
    return layers


def new_adapter(model: Model, config: TrainingConfig) -> AdapterConfig:
    """Return which layers get adapters.

    Without names of layers these are the linear ones of all blocks and of the connector. The
    patch embedding and the head have to be named.

    Raises:
        RequestError: there is no such layer.
    """
    keys = config.lora_keys
    chosen = []
    for path in linear_layers(model):
        module = module_of(path)
        if module not in config.trained_modules or not _is_late(model, path, config.num_layers):
            continue
        if keys is None:
            wanted = ".layers." in path or module == "connector"
        else:
            wanted = any(path == key or path.endswith(f".{key}") for key in keys)
        if wanted:
            chosen.append(path)
    for key in keys or ():
        if not any(path == key or path.endswith(f".{key}") for path in chosen):
            raise RequestError(
                f"lora_keys: {key} names no linear layer of {', '.join(config.trained_modules)};"
                f" names are like {', '.join(list(linear_layers(model.decoder.layers[0]))[:2])}"
            )
    return AdapterConfig(
        config.fine_tune_type, config.rank, config.scale, config.dropout, tuple(chosen)
    )


def _is_late(model: Model, path: str, count: int | None) -> bool:
    """Return whether a layer is in one of the last blocks of its module, or in no block at all."""
    module, _, rest = path.partition(".layers.")
    if not rest or count is None or count < 0:
        return True
    return int(rest.split(".", 1)[0]) >= len(model[module].layers) - count


def _refuse_quantized(model: Model) -> None:
    quantized = [path for path in flat(model.parameters()) if path.endswith(".scales")]
    if quantized:
        raise RequestError(
            f"{quantized[0].removesuffix('.scales')} is quantized, and quantized weights cannot be"
            " trained; train an adapter (fine_tune_type lora or dora), or take the model that is"
            " not quantized"
        )


class KeyedDropout(nn.Module):
    """Dropout that follows from a key alone, and not from the random state of the process.

    So a resumed run leaves out what an uninterrupted one would have, and a layer that is computed
    twice leaves out the same both times.
    """

    def __init__(self, fraction: float) -> None:
        super().__init__()
        self._fraction = fraction
        self._key = mx.random.key(0)

    def set_key(self, key: mx.array) -> None:
        """Set the key of the following calls."""
        self._key = key

    def __call__(self, x: mx.array) -> mx.array:
        """Return values of the same shape and dtype, some of them zero while training."""
        if not self.training:
            return x
        kept = mx.random.bernoulli(1 - self._fraction, x.shape, key=self._key)
        return mx.where(kept, x * (1 / (1 - self._fraction)), mx.zeros((), x.dtype))


def use_keyed_dropout(model: Model, fraction: float) -> list[KeyedDropout]:
    """Replace the dropout of all adapters, and return what replaces it."""
    if not fraction:
        return []
    dropouts = []
    for layer in adapted_layers(model).values():
        layer.dropout = KeyedDropout(fraction)
        dropouts.append(layer.dropout)
    return dropouts


def batch_key(*numbers: int) -> mx.array:
    """Return a random key that follows from numbers alone, like seed, iteration and batch."""
    (seed,) = np.random.SeedSequence(numbers).generate_state(1, np.uint64).tolist()
    return mx.random.key(seed)


def set_keys(dropouts: Sequence[KeyedDropout], key: mx.array) -> None:
    """Give every dropout of a model, always in the same order, a key of its own."""
    if dropouts:
        for dropout, own in zip(dropouts, mx.random.split(key, len(dropouts)), strict=True):
            dropout.set_key(own)


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

    Their activations are computed a second time on the backward pass. Only this model's layers
    are changed: they get another class, and then their own again.
    """
    layers = [*model.vision_tower.layers, *model.decoder.layers] if enabled else []
    try:
        for layer in layers:
            layer.__class__ = _CheckpointedBlock
        yield
    finally:
        for layer in layers:
            layer.__class__ = Block
