"""`fuse`: a model and its adapters become one ordinary checkpoint."""

import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..checkpoint.adapters import adapted_layers
from ..checkpoint.hub import locate_checkpoint
from ..checkpoint.loader import check_template, load
from ..checkpoint.quantization import Quantization, resized_shape, unpack
from ..checkpoint.saving import check_target, read_record
from ..checkpoint.writer import write_model
from ..config.json_file import read_json
from ..conversion.converter import convert
from ..errors import CheckpointError, ConversionError, RequestError
from ..files import atomic_folder, local_path
from ..model import Model
from ..progress import Progress
from .optimizer import Arrays, flat


def fuse(
    model_path: str | Path,
    adapter_path: str | Path,
    output: str | Path,
    *,
    revision: str | None = None,
    dtype: str | None = None,
    force: bool = False,
    quantize: bool = False,
    q_bits: int | None = None,
    q_group_size: int | None = None,
    q_mode: str | None = None,
    recipe: str | None = None,
    show_progress: bool | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a checkpoint that answers as a model with adapters does, but needs none.

    Quantized layers become ordinary ones: what an adapter adds would be lost in rounding. With
    `quantize` the result is quantized again afterwards.

    Args:
        model_path: folder or repository of the model.
        adapter_path: folder of the adapters.
        output: the folder to write.
        revision: branch, tag or commit of a repository.
        dtype: `float32`, `float16` or `bfloat16`; None keeps what the model computes in.
        force: whether an existing checkpoint in `output` is replaced.
        quantize: whether to quantize the result; the options below are those of `convert`.
        q_bits: as for `convert`.
        q_group_size: as for `convert`.
        q_mode: as for `convert`.
        recipe: as for `convert`.
        show_progress: as for `load`.
        progress: told how many bytes of weights have been read.

    Returns:
        The folder that was written.

    Raises:
        JvlmError: with one line that says what is wrong with options, model, adapter or output.
    """
    quantization: dict[str, Any] = {
        "q_bits": q_bits, "q_group_size": q_group_size, "q_mode": q_mode, "recipe": recipe,
    }  # fmt: skip
    for name, value in quantization.items():
        if value is not None and not quantize:
            raise RequestError(f"{name} is for quantization; add quantize (-q), too")
    target = local_path(output, ConversionError)
    adapter = local_path(adapter_path, CheckpointError)
    check_target(target, adapter=adapter, force=force)
    source = locate_checkpoint(model_path, revision=revision, show_progress=show_progress)
    check_target(target, source, adapter=adapter, force=force)
    model, processor = load(source, dtype=dtype, adapter_path=adapter, progress=progress)
    check_template(source, processor)
    arrays = fused_parameters(model)
    try:
        if not quantize:
            with atomic_folder(target, ConversionError, replace=force) as work:
                _write(source, work, model, arrays)
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fusing-") as work_folder:
            # The conversion notes its source's name.
            work = Path(work_folder) / target.name
            work.mkdir()
            _write(source, work, model, arrays)
            convert(work, target, quantize=True, force=force, **quantization)
    except OSError as error:
        raise ConversionError(f"{target} cannot be written: {error.strerror or error}") from error
    return target


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


def _write(source: Path, folder: Path, model: Model, arrays: Arrays) -> None:
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

    Quantization has padded it with zeros. They stay if an adapter has made something of them.
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
