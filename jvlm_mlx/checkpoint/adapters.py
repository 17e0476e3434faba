"""Adapters: small matrices beside a model's linear layers, in files of their own.

The layers are mlx-lm's, and so are the files: `adapters.safetensors`, and `adapter_config.json`
whose `keys` name every adapted layer by its whole path in the model.
"""

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from .. import _mlx_lm
from ..config.config_reader import ConfigReader, number, size, text
from ..config.json_file import quoted, read_json
from ..errors import CheckpointError
from ..files import local_path, reason
from ..model import Model
from .reader import CheckpointFiles, shown
from .validation import check_tensors, check_values
from .weights import as_bytes

logger = logging.getLogger(__name__)

WEIGHTS_NAME, CONFIG_NAME = "adapters.safetensors", "adapter_config.json"
KINDS = {"lora": "LoRALinear", "dora": "DoRALinear"}
"""Names of mlx-lm's modules."""


@dataclass(frozen=True)
class AdapterConfig:
    """Which layers have adapters, and of what kind."""

    kind: str
    """`lora` or `dora`."""
    rank: int
    scale: float
    """Factor on what an adapter adds."""
    dropout: float
    """Fraction of an adapter's inputs left out in training."""
    layers: tuple[str, ...]
    """Paths in the model."""

    base_model: str | None = None
    """Name of the model it was trained for, if that was recorded."""
    base_digest: str | None = None
    """`base_digest` of that model."""

    @classmethod
    def read(cls, folder: Path) -> "AdapterConfig":
        """Read `adapter_config.json`.

        Raises:
            CheckpointError: there is none, or a value is missing or of another kind.
        """
        file = folder / CONFIG_NAME
        if not file.is_file():
            raise CheckpointError(f"{folder} holds no adapter: it has no {CONFIG_NAME}")
        reader = ConfigReader(read_json(file), str(file))
        kind = reader.read("fine_tune_type", text)
        if kind not in KINDS:
            raise CheckpointError(
                f"{file}: fine_tune_type is {quoted(kind)}; expected {' or '.join(KINDS)}"
            )
        values = reader.section("lora_parameters")
        layers = values.read("keys", _paths)
        if len(set(layers)) < len(layers):
            raise CheckpointError(f"{file}: keys names a layer twice")
        dropout = values.read("dropout", number)
        if not 0 <= dropout < 1:
            raise CheckpointError(f"{file}: dropout is {dropout}; expected from 0 to below 1")
        return cls(
            kind=kind,
            rank=values.read("rank", size),
            scale=values.read("scale", number),
            dropout=dropout,
            layers=layers,
            base_model=reader.read("model", text, None),
            base_digest=reader.read("base_digest", text, None),
        )

    def write(self, folder: Path, **more: Any) -> None:
        """Write `adapter_config.json`, with further entries that reading leaves alone."""
        values = {"rank": self.rank, "scale": self.scale, "dropout": self.dropout,
                  "keys": list(self.layers)}  # fmt: skip
        content = {"fine_tune_type": self.kind, "lora_parameters": values, **more}
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / CONFIG_NAME).write_text(text, encoding="utf-8")


def _paths(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        raise TypeError("a list of paths of layers")
    return tuple(value)


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
        if isinstance(module, (_mlx_lm.LoRALinear, _mlx_lm.DoRALinear))
    }


def adapter_scales(model: nn.Module) -> tuple[float, ...]:
    """Return the factor of each adapter, in an order that stays; fast, for every request asks."""
    scales: list[float] = []
    pending: list[Any] = [model]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):  # modules are dicts
            if "lora_a" in value:
                scales.append(value.scale)  # type: ignore[attr-defined]
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)
    return tuple(scales)


def add_adapters(model: Model, config: AdapterConfig, seed: int) -> None:
    """Give layers adapters that add nothing yet: the first matrix is random, the second zero.

    Raises:
        CheckpointError: a layer does not exist, or cannot have an adapter of this kind.
    """
    layers = linear_layers(model)
    _adapter_shapes(layers, config)
    added = []
    keys = mx.random.split(mx.random.key(seed), len(config.layers))
    with _unchanged_random_state():
        for path, key in zip(config.layers, keys, strict=True):
            added.append((path, _adapter(path, layers[path], config, key)))
    model.update_modules(tree_unflatten(added))


def _adapter_shapes(layers: Mapping[str, Any], config: AdapterConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array that adapters have, before they are made.

    Raises:
        CheckpointError: a layer does not exist.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in config.layers:
        if path not in layers:
            raise CheckpointError(
                f"the adapter is for a layer {shown(path)}, which this model has not"
            )
        outputs, inputs = _sizes(layers[path])
        shapes[f"{path}.lora_a"] = (inputs, config.rank)
        shapes[f"{path}.lora_b"] = (config.rank, outputs)
        if config.kind == "dora":
            shapes[f"{path}.m"] = (outputs,)
    return shapes


def _sizes(layer: Any) -> tuple[int, int]:
    """Return outputs and inputs of a linear layer, quantized or not."""
    outputs, inputs = layer.weight.shape
    if isinstance(layer, nn.QuantizedLinear):
        inputs = inputs * 32 // layer.bits
    return outputs, inputs


def _adapter(path: str, layer: Any, config: AdapterConfig, key: mx.array) -> nn.Module:
    outputs, inputs = _sizes(layer)
    adapter: nn.Module = getattr(_mlx_lm, KINDS[config.kind])(
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


@contextmanager
def _unchanged_random_state() -> Iterator[None]:
    """Keep the process's random numbers as they were: mlx-lm's layers draw their first weights."""
    state: Any = mx.random.state
    high, low = state[0].tolist()
    try:
        yield
    finally:
        mx.random.seed(high << 32 | low)


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
    """Give a model the adapters of a folder; it stays as it is if they do not fit.

    Raises:
        CheckpointError: the adapter does not fit the model: names the first array that is
            missing, surplus, misshapen or NaN.
    """
    folder = local_path(folder, CheckpointError)
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}; give the folder of an adapter")
    config = AdapterConfig.read(folder)
    # Compared first: what does not fit costs no memory.
    arrays = _read(folder, _adapter_shapes(linear_layers(model), config))
    if config.base_digest not in (None, base_digest(model)):
        logger.warning(
            "%s was trained for %s, and this is another model (its norms differ): answers may be"
            " wrong",
            folder,
            quoted(config.base_model) if config.base_model else "other weights",
        )
    add_adapters(model, config, seed=0)
    model.load_weights(arrays, strict=False)
    model.eval()


def load_adapter_weights(model: Model, folder: Path) -> None:
    """Fill the adapters that a model has already.

    Raises:
        CheckpointError: as `load_adapter`.
    """
    expected = {path: tuple(array.shape) for path, array in adapter_parameters(model).items()}
    model.load_weights(_read(folder, expected), strict=False)
    model.eval()


def _read(folder: Path, expected: Mapping[str, tuple[int, ...]]) -> list[tuple[str, mx.array]]:
    """Read the arrays of a folder, which must have these shapes and finite values."""
    file = folder / WEIGHTS_NAME
    if not file.is_file():
        raise CheckpointError(f"{folder} has no {WEIGHTS_NAME}")
    files = CheckpointFiles(folder, only=file)
    check_tensors(files, expected)
    for tensor in files.tensors.values():
        check_values(tensor, files.rows(tensor.name, 0, tensor.shape[0]))
    arrays = [(path, files.take(path)) for path in expected]
    try:
        mx.eval([array for _, array in arrays])
    except RuntimeError as error:
        raise CheckpointError(f"{folder} cannot be read: {reason(error)}") from None
    return arrays


def base_digest(model: Model) -> str:
    """Return a digest of a model's norms, which neither adapters nor quantization change.

    Computed in bfloat16, so that it is the same for a model that was stored with more bits.
    """
    digest = hashlib.sha256()
    for path, array in sorted(floating(model)):
        if "norm" in path:
            rounded = array.astype(mx.bfloat16)
            mx.eval(rounded)
            digest.update(f"{path} {rounded.shape} ".encode())
            digest.update(as_bytes(mx.contiguous(rounded)).tobytes())
    return digest.hexdigest()[:32]


def floating(model: nn.Module) -> Iterable[tuple[str, mx.array]]:
    """Yield path and array of every parameter that is a number, not packed bits."""
    flattened: Any = tree_flatten(model.parameters())
    for path, array in flattened:
        if mx.issubdtype(array.dtype, mx.floating):
            yield path, array
