"""Adapters: small matrices beside a model's linear layers, in files of their own.

The layers are mlx-lm's, and so are the files: `adapters.safetensors`, and `adapter_config.json`
whose `keys` name every adapted layer by its whole path in the model.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from .._mlx_lm import DoRALinear, LoRALinear
from ..config.json_file import read_json
from ..errors import CheckpointError
from ..files import local_path
from ..model import Model
from .reader import CheckpointFiles

WEIGHTS_NAME, CONFIG_NAME = "adapters.safetensors", "adapter_config.json"
KINDS = {"lora": LoRALinear, "dora": DoRALinear}


@dataclass(frozen=True)
class AdapterConfig:
    """Which layers have adapters, and of what kind."""

    kind: str
    """`lora` or `dora`."""
    rank: int
    scale: float
    """Factor on what an adapter adds."""
    dropout: float
    """Share of an adapter's inputs left out in training."""
    layers: tuple[str, ...]
    """Paths in the model."""

    @classmethod
    def read(cls, folder: Path) -> "AdapterConfig":
        """Read `adapter_config.json`.

        Raises:
            CheckpointError: there is none, or it does not say what is needed.
        """
        file = folder / CONFIG_NAME
        if not file.is_file():
            raise CheckpointError(f"{folder} holds no adapter: it has no {CONFIG_NAME}")
        content = read_json(file)
        kind = content.get("fine_tune_type") if isinstance(content, dict) else None
        if kind not in KINDS:
            raise CheckpointError(
                f"{file}: fine_tune_type is {kind!r}; expected {' or '.join(KINDS)}"
            )
        values = content.get("lora_parameters")
        values = values if isinstance(values, dict) else {}
        rank, scale, dropout = (values.get(name) for name in ("rank", "scale", "dropout"))
        keys = values.get("keys")
        if not isinstance(rank, int) or rank < 1:
            raise CheckpointError(f"{file}: rank is {rank!r}; expected a whole number above 0")
        if not isinstance(scale, int | float) or not isinstance(dropout, int | float):
            raise CheckpointError(f"{file}: lora_parameters has no number for scale or dropout")
        if not math.isfinite(scale):
            raise CheckpointError(f"{file}: scale is {scale}; expected a finite number")
        if not 0 <= dropout < 1:
            raise CheckpointError(f"{file}: dropout is {dropout}; expected from 0 to below 1")
        if not isinstance(keys, list) or not keys or not all(isinstance(key, str) for key in keys):
            raise CheckpointError(f"{file}: lora_parameters has no keys, the paths of layers")
        if len(set(keys)) < len(keys):
            raise CheckpointError(f"{file}: keys names a layer twice")
        return cls(kind, rank, float(scale), float(dropout), tuple(keys))

    def write(self, folder: Path, **more: Any) -> None:
        """Write `adapter_config.json`.

        Args:
            folder: to write into.
            **more: further entries, which reading leaves alone.
        """
        values = {"rank": self.rank, "scale": self.scale, "dropout": self.dropout,
                  "keys": list(self.layers)}  # fmt: skip
        content = {"fine_tune_type": self.kind, "lora_parameters": values, **more}
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / CONFIG_NAME).write_text(text, encoding="utf-8")


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return all layers that may have an adapter, quantized or not, by path."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.QuantizedLinear)
    }


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """Return all layers that have an adapter, by path."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, tuple(KINDS.values()))
    }


def add_adapters(model: Model, config: AdapterConfig, seed: int) -> None:
    """Give layers adapters that add nothing yet.

    Args:
        model: is changed.
        config: which layers, and what they get.
        seed: of the first matrix of each adapter; the second is zero.

    Raises:
        CheckpointError: a layer does not exist, or cannot have an adapter of this kind.
    """
    layers = linear_layers(model)
    added = []
    keys = mx.random.split(mx.random.key(seed), len(config.layers))
    for path, key in zip(config.layers, keys, strict=True):
        if path not in layers:
            raise CheckpointError(f"the adapter is for a layer {path}, which this model has not")
        added.append((path, _adapter(path, layers[path], config, key)))
    model.update_modules(tree_unflatten(added))


def _adapter(path: str, layer: Any, config: AdapterConfig, key: mx.array) -> nn.Module:
    outputs, inputs = layer.weight.shape
    if isinstance(layer, nn.QuantizedLinear):
        inputs = inputs * 32 // layer.bits
    adapter = KINDS[config.kind](
        input_dims=inputs,
        output_dims=outputs,
        r=config.rank,
        dropout=config.dropout,
        scale=config.scale,
    )
    if config.kind == "dora":
        adapter.set_linear(layer)
        # Rows of a tower that was padded before it was quantized.
        if mx.any(adapter.m == 0).item():
            raise CheckpointError(
                f"{path} has rows of nothing but zeros, which dora cannot scale; choose lora, or"
                " other layers"
            )
    else:
        adapter.linear = layer
    bound = 1 / math.sqrt(inputs)
    adapter.lora_a = mx.random.uniform(-bound, bound, (inputs, config.rank), key=key)
    return adapter


def adapter_parameters(model: Model) -> dict[str, mx.array]:
    """Return the adapters' own arrays by path, without the layers beneath."""
    layers = adapted_layers(model)
    return {
        f"{path}.{name}": module[name]
        for path, module in layers.items()
        for name in ("lora_a", "lora_b", "m")
        if name in module
    }


def load_adapter(model: Model, folder: str | Path) -> None:
    """Give a model the adapters of a folder.

    Raises:
        CheckpointError: the adapter does not fit the model: names the first array that is
            missing, surplus or misshapen.
    """
    folder = local_path(folder, CheckpointError)
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}; give the folder of an adapter")
    add_adapters(model, AdapterConfig.read(folder), seed=0)
    load_adapter_weights(model, folder)


def load_adapter_weights(model: Model, folder: Path) -> None:
    """Fill the adapters that a model has already.

    Raises:
        CheckpointError: as `load_adapter`.
    """
    file = folder / WEIGHTS_NAME
    if not file.is_file():
        raise CheckpointError(f"{folder} has no {WEIGHTS_NAME}")
    files = CheckpointFiles(folder, only=file)
    _check(file, files, adapter_parameters(model))
    loaded = [(path, files.take(path)) for path in files.tensors]
    model.load_weights(loaded, strict=False)
    mx.eval([array for _, array in loaded])
    model.eval()


def _check(file: Path, files: CheckpointFiles, expected: Mapping[str, mx.array]) -> None:
    problems = [
        f"{path} is missing; expected shape {tuple(array.shape)}"
        for path, array in expected.items()
        if path not in files.tensors
    ]
    for path, tensor in sorted(files.tensors.items()):
        if path not in expected:
            problems.append(f"{path} of shape {tensor.shape} has no place in the model")
        elif tensor.shape != tuple(expected[path].shape):
            problems.append(
                f"{path} has shape {tensor.shape}; expected {tuple(expected[path].shape)}"
            )
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise CheckpointError(f"{file}: {problems[0]}{more}")


def floating(model: nn.Module) -> Iterable[tuple[str, mx.array]]:
    """Yield path and array of every parameter that is a number, not packed bits."""
    flattened: Any = tree_flatten(model.parameters())
    for path, array in flattened:
        if mx.issubdtype(array.dtype, mx.floating):
            yield path, array
