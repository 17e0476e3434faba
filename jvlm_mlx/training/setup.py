"""A model made ready for training: what shall stay as it is frozen, dtypes as asked for."""

from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_unflatten

from ..checkpoint.adapters import (
    AdapterConfig,
    add_adapters,
    floating,
    linear_layers,
    load_adapter_weights,
)
from ..config.dtypes import FLOAT_DTYPES
from ..errors import RequestError
from ..model import Model
from .modules import PARTS, part_of
from .optimizer import flat
from .training_config import AdapterOptions, TrainingConfig


def prepare_model(model: Model, config: TrainingConfig, checkpoint: Path | None) -> None:
    """Freeze all that shall not change, and add adapters if they are asked for.

    Args:
        model: as it was loaded, in float32 if its own weights are to be trained.
        config: of the run.
        checkpoint: folder of the adapters to go on with; None begins with fresh ones, and is
            right for a model without adapters.

    Raises:
        RequestError: quantized weights would have to change, or no layer is left for adapters.
        CheckpointError: the adapters in `checkpoint` are not those of the config.
    """
    model.freeze()
    if config.adapter is None:
        _refuse_quantized(model)
        for part in config.trained_parts:
            for module in _modules(model, part):
                module.unfreeze()
    trained = flat(model.trainable_parameters())
    dtype = FLOAT_DTYPES[config.dtype].mlx
    converted: list[tuple[str, Any]] = [
        (path, array.astype(mx.float32 if path in trained else dtype))
        for path, array in floating(model)
    ]
    model.update(tree_unflatten(converted))
    if config.adapter is not None:
        config_json = adapter_config(model, config.adapter, config.trained_parts)
        add_adapters(model, config_json, config.seed)
        if checkpoint is not None:
            load_adapter_weights(model, checkpoint)
    mx.eval(model.parameters())


def adapter_config(model: Model, config: AdapterOptions, parts: tuple[str, ...]) -> AdapterConfig:
    """Return which layers of some parts get adapters.

    Without names of layers these are the linear ones of all blocks and of the connector. The
    patch embedding and the head have to be named.

    Raises:
        RequestError: there is no such layer.
    """
    chosen = []
    for path in linear_layers(model):
        part = part_of(path)
        if part not in parts:
            continue
        if config.keys is None:
            wanted = ".layers." in path or part == "connector"
        else:
            wanted = any(path == key or path.endswith(f".{key}") for key in config.keys)
        if wanted and (config.num_layers is None or _is_late(model, path, config.num_layers)):
            chosen.append(path)
    for key in config.keys or ():
        if not any(path == key or path.endswith(f".{key}") for path in chosen):
            raise RequestError(
                f"adapter key {key} names no linear layer of {', '.join(parts)}; names are like"
                f" {', '.join(list(linear_layers(model.decoder.layers[0]))[:2])}"
            )
    return AdapterConfig(config.kind, config.rank, config.scale, config.dropout, tuple(chosen))


def _is_late(model: Model, path: str, count: int) -> bool:
    """Return whether a layer is in one of the last blocks of its part, or in no block at all."""
    part, _, rest = path.partition(".layers.")
    if not rest:
        return True
    return int(rest.split(".", 1)[0]) >= len(model[part].layers) - count


def _refuse_quantized(model: Model) -> None:
    quantized = [path for path in flat(model.parameters()) if path.endswith(".scales")]
    if quantized:
        raise RequestError(
            f"{quantized[0].removesuffix('.scales')} is quantized, and quantized weights cannot be"
            " trained; train an adapter (lora or dora), or take the model that is not quantized"
        )


def _modules(model: Model, part: str) -> list[Any]:
    return [model[name] for name in (*PARTS, "lm_head") if name in model and part_of(name) == part]
