"""`inspect`: what a checkpoint folder or a single file holds, from headers alone."""

import math
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint.hub import locate_checkpoint
from ..checkpoint.names import MODULES, module_of
from ..checkpoint.quantization import infer_quantization, resized_shape
from ..checkpoint.reader import CheckpointFiles, StoredTensor
from ..checkpoint.saving import CONFIG, Record, read_record
from ..checkpoint.structure import find_layout, parameter_parts, unused_tensors
from ..checkpoint.validation import check_sizes
from ..config.config_reader import ConfigReader
from ..config.dtypes import BY_CODE
from ..config.json_file import read_json
from ..config.model_config import ModelConfig
from ..errors import CheckpointError
from ..files import local_path
from ..model.parameters import is_quantizable, parameter_shapes

CACHE_TOKENS = 1000


@dataclass(frozen=True)
class ModuleSummary:
    """One module of the model."""

    name: str
    tensors: int
    weights: int | None
    """Numbers it holds; None where packed weights are of unknown width."""
    bytes: int
    formats: tuple[str, ...]
    """How its tensors are stored: types, and formats of quantization."""

    @property
    def bits_per_weight(self) -> float | None:
        """Bits of all tensors, scales included, for each number."""
        return self.bytes * 8 / self.weights if self.weights else None


@dataclass(frozen=True)
class Inspection:
    """What was found."""

    path: str
    layout: str
    files: int
    modules: tuple[ModuleSummary, ...]
    unused_bytes: int
    """Of tensors that are never loaded, and not counted above."""
    missing: int | None
    """Tensors that the model needs and are not there; None without config.json."""
    loaded_bytes: int
    """Memory of the weights once they are loaded."""
    cache_bytes: int | None
    """Memory of the KV cache for `CACHE_TOKENS` tokens; None without config.json."""

    @property
    def bytes(self) -> int:
        """Size of all tensors that are loaded."""
        return sum(module.bytes for module in self.modules)

    @property
    def weights(self) -> int | None:
        """Numbers of the model; None where they cannot be known."""
        counts = [module.weights for module in self.modules if module.weights is not None]
        return sum(counts) if len(counts) == len(self.modules) else None

    @property
    def bits_per_weight(self) -> float | None:
        """Bits of all tensors for each number of the model."""
        return self.bytes * 8 / self.weights if self.weights else None


def inspect(path: str | Path) -> Inspection:
    """Look at a checkpoint or a single safetensors file. No weights are read.

    A single file is understood best with its config.json beside it: without, packed weights
    do not tell how many numbers they hold.

    Args:
        path: a file, or what `load` takes; a repository is downloaded.

    Raises:
        CheckpointError: it is not there, cannot be read, or holds something else.
    """
    place = local_path(path, CheckpointError)
    if place.is_file():
        files = CheckpointFiles(place.parent, only=place)
    else:
        files = CheckpointFiles(locate_checkpoint(path))
    layout = find_layout(files)
    used, missing, config = dict(files.tensors), None, None
    record: Record | None = None
    shapes: dict[str, tuple[int, ...]] = {}
    if (files.folder / CONFIG).is_file():
        config_json = read_json(files.folder / CONFIG)
        config = ModelConfig.read(ConfigReader(config_json, CONFIG))
        check_sizes(files, config, whole=not place.is_file())
        unused = unused_tensors(config, layout)
        used = {name: tensor for name, tensor in files.tensors.items() if not unused(name)}
        parameters = dict(parameter_shapes(config))
        needed = {
            part.name
            for path, shape in parameters.items()
            for part in parameter_parts(path, shape, config, layout)
            if not part.optional
        }
        missing = len(needed - used.keys())
        # By stored name, as if nothing were packed.
        shapes = {
            layout.sources(path)[0]: shape
            for path, shape in parameters.items()
            if is_quantizable(path, shape)
        }
        record = read_record(config_json)
    groups: dict[str, list[StoredTensor]] = {}
    for name, tensor in used.items():
        groups.setdefault(module_of(name) or "other", []).append(tensor)
    mlp_size = record.unpadded_mlp_size if record else None
    return Inspection(
        path=str(path),
        layout=layout.name,
        files=len({tensor.file for tensor in files.tensors.values()}),
        modules=tuple(
            _module(module, groups[module], used, shapes, config, mlp_size)
            for module in (*MODULES, "other")
            if module in groups
        ),
        unused_bytes=sum(
            tensor.nbytes for name, tensor in files.tensors.items() if name not in used
        ),
        missing=missing,
        loaded_bytes=sum(tensor.nbytes for tensor in used.values()),
        cache_bytes=_cache_bytes(config, files) if config else None,
    )


def _module(
    name: str,
    members: list[StoredTensor],
    tensors: dict[str, StoredTensor],
    shapes: dict[str, tuple[int, ...]],
    config: ModelConfig | None,
    mlp_size: int | None,
) -> ModuleSummary:
    counts: list[int | None] = []
    formats = set()
    for tensor in members:
        layer, _, kind = tensor.name.rpartition(".")
        scales = tensors.get(f"{layer}.scales")
        if scales is not None and kind in ("scales", "biases"):
            continue
        shape: tuple[int, ...] | None = tensor.shape
        if scales is None or kind != "weight":
            formats.add(tensor.dtype)
        elif tensor.name in shapes:
            shape = shapes[tensor.name]
            found = infer_quantization(tensor, scales, f"{layer}.biases" in tensors, shape[-1])
            formats.add(f"{found.mode} {found.bits} bits / {found.group_size}")
        else:
            shape = None
            formats.add("packed")
        if shape is not None and config and mlp_size is not None:
            # Padding is no module of the model; only this package's own layout has it.
            shape = resized_shape(tensor.name, shape, mlp_size, config)
        counts.append(None if shape is None else math.prod(shape))
    return ModuleSummary(
        name=name,
        tensors=len(members),
        weights=None if None in counts else sum(count or 0 for count in counts),
        bytes=sum(tensor.nbytes for tensor in members),
        formats=tuple(sorted(formats)),
    )


def _cache_bytes(config: ModelConfig, files: CheckpointFiles) -> int:
    decoder = config.decoder
    norms = {
        BY_CODE[tensor.dtype].nbytes
        for name, tensor in files.tensors.items()
        if module_of(name) == "decoder" and name.endswith("norm.weight")
    }
    values = 2 * decoder.num_hidden_layers * decoder.block.attention.key_value_size
    return CACHE_TOKENS * values * max(norms, default=4)
