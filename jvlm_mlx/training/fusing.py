"""The weights of a model with its adapters added to them, as an ordinary checkpoint."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..checkpoint.adapters import adapted_layers
from ..checkpoint.quantization import Quantization, resized_shape, unpack
from ..checkpoint.saving import read_record
from ..checkpoint.writer import write_model
from ..config.json_file import read_json
from ..errors import ConversionError
from ..model import Model
from .optimizer import Arrays, flat
from .step import first_not_finite


def fused_parameters(model: Model) -> Arrays:
    """Return all parameters of a model by path, adapters fused and nothing quantized.

    Sums are made in float32, and rounded once to what the layer's own weight is.
    """
    arrays: Arrays = {}
    adapted = adapted_layers(model)
    covered = tuple(f"{path}." for path in adapted)
    layers: dict[str, Any] = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding)
        and not path.startswith(covered)
    }
    skipped = (*covered, *(f"{path}." for path in layers))
    for path, array in flat(model.parameters()).items():
        if not path.startswith(skipped):
            arrays[path] = array
    weights: Arrays = {}
    for path, layer in layers.items():
        weights[path] = _weight(layer, model.dtype)
    for path, adapter in adapted.items():
        weight = _weight(adapter.linear, mx.float32)
        fused = weight + adapter.scale * (adapter.lora_a @ adapter.lora_b).T
        if "m" in adapter:
            fused = fused * (adapter.m / mx.linalg.norm(fused, axis=1))[:, None]
        weights[path], layers[path] = fused, adapter.linear
    for path, weight in weights.items():
        arrays[f"{path}.weight"] = weight.astype(model.dtype)
        if "bias" in layers[path]:
            arrays[f"{path}.bias"] = layers[path].bias
    return arrays


def _weight(layer: Any, dtype: mx.Dtype) -> mx.array:
    if not isinstance(layer, nn.QuantizedLinear | nn.QuantizedEmbedding):
        weight: mx.array = layer.weight
        return weight.astype(dtype)
    packed = [layer[name] for name in ("weight", "scales", "biases") if layer.get(name) is not None]
    return unpack(packed, Quantization(layer.group_size, layer.bits, layer.mode), dtype)


def write_fused(source: Path, folder: Path, model: Model) -> None:
    """Write the checkpoint of a model without its adapters into an empty folder.

    Raises:
        ConversionError: a weight is not finite.
        OSError: the disk is full.
    """
    arrays = fused_parameters(model)
    if path := first_not_finite(arrays):
        raise ConversionError(
            f"{path} is not finite with the adapter added to it, so nothing is written; the model"
            " or the adapter is damaged"
        )
    size, unpadded = _mlp_sizes(source, model, arrays)
    if size != unpadded:
        arrays = {
            path: array[tuple(slice(side) for side in resized_shape(
                path, tuple(array.shape), unpadded, model.config))]
            for path, array in arrays.items()
        }  # fmt: skip
    write_model(source, folder, model.config, arrays, "fused with adapters")


def _mlp_sizes(source: Path, model: Model, arrays: Arrays) -> tuple[int, int]:
    """Return the width of the tower's MLP, and what it is without padding.

    Quantization has padded it with zeros. They stay if an adapter has changed them.
    """
    size = model.config.tower.block.mlp.intermediate_size
    record = read_record(read_json(source / "config.json"))
    unpadded = record.unpadded_mlp_size if record else size
    # Values behind an activation of zero change nothing, whatever their weights are.
    used = any(
        mx.any(array[unpadded:] != 0).item()
        for path, array in arrays.items()
        if path.startswith("vision_tower.") and ".mlp.up." in path
    )
    return size, size if used else unpadded
