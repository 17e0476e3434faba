"""`inspect`: what a checkpoint folder or a single file holds, from headers alone."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.copied_files import CONFIG
from ..checkpoint.hub import locate_checkpoint
from ..checkpoint.names import PARTS, Layout, detect_layout, part_of
from ..checkpoint.padding import resized_shape
from ..checkpoint.quantization import infer_quantization, quantizable_layers
from ..checkpoint.reader import CheckpointFiles, StoredTensor
from ..checkpoint.record import Record, read_record
from ..checkpoint.weights import needed_names, stored_bytes, unused_tensors
from ..cli.formatting import table
from ..config.config_reader import ConfigReader
from ..config.json_file import read_json
from ..config.model_config import ModelConfig
from ..errors import CheckpointError
from ..files import local_path
from ..model import Model
from ..units import bytes_text, count_text

CACHE_TOKENS = 1000
_FLOAT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class PartSummary:
    """One part of the model."""

    name: str
    tensors: int
    weights: int | None
    """Numbers it stands for; None where packed weights are of unknown width."""
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
    parts: tuple[PartSummary, ...]
    unused_bytes: int
    """Of tensors that are never loaded, and not counted above."""
    missing: int | None
    """Tensors that the model needs and are not there; None without config.json."""
    loaded_bytes: int
    """Memory of the weights once they are loaded."""
    cache_bytes: int | None
    """Memory of keys and values for `CACHE_TOKENS` tokens; None without config.json."""

    @property
    def bytes(self) -> int:
        """Size of all tensors that are loaded."""
        return sum(part.bytes for part in self.parts)

    @property
    def weights(self) -> int | None:
        """Numbers of the model; None where they cannot be known."""
        counts = [part.weights for part in self.parts if part.weights is not None]
        return sum(counts) if len(counts) == len(self.parts) else None

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
    layout = detect_layout(files.tensors)
    if layout is None:
        names = ", ".join(sorted(files.tensors)[:3])
        raise CheckpointError(f"{path} holds no Jina-VLM: its tensors are named {names}, ...")
    used, missing, config = dict(files.tensors), None, None
    record: Record | None = None
    shapes: dict[str, tuple[int, ...]] = {}
    if (files.folder / CONFIG).is_file():
        config_json = read_json(files.folder / CONFIG)
        config = ModelConfig.read(ConfigReader(config_json, CONFIG))
        unused = unused_tensors(config, layout)
        used = {name: tensor for name, tensor in files.tensors.items() if not unused(name)}
        missing = len(needed_names(config, layout) - used.keys())
        shapes = _shapes(config, layout)
        record = read_record(config_json)
    groups: dict[str, list[StoredTensor]] = {}
    for name, tensor in used.items():
        groups.setdefault(part_of(name) or "other", []).append(tensor)
    mlp_size = record.unpadded_mlp_size if record else None
    return Inspection(
        path=str(path),
        layout=layout.name,
        files=len({tensor.file for tensor in files.tensors.values()}),
        parts=tuple(
            _part(part, groups[part], used, shapes, config, mlp_size)
            for part in (*PARTS, "other")
            if part in groups
        ),
        unused_bytes=sum(
            stored_bytes(tensor) for name, tensor in files.tensors.items() if name not in used
        ),
        missing=missing,
        loaded_bytes=sum(map(stored_bytes, used.values())),
        cache_bytes=_cache_bytes(config, files) if config else None,
    )


def _shapes(config: ModelConfig, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Return the shape of each layer's weight, by its name in a layout, if it were not packed."""
    return {
        layout.sources(f"{path}.weight")[0]: tuple(layer.weight.shape)
        for path, layer in quantizable_layers(Model(config))
    }


def _part(
    name: str,
    members: list[StoredTensor],
    tensors: dict[str, StoredTensor],
    shapes: dict[str, tuple[int, ...]],
    config: ModelConfig | None,
    mlp_size: int | None,
) -> PartSummary:
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
            # Padding is no part of the model; only this package's own layout has it.
            shape = resized_shape(tensor.name, shape, mlp_size, config)
        counts.append(None if shape is None else math.prod(shape))
    return PartSummary(
        name=name,
        tensors=len(members),
        weights=None if None in counts else sum(count or 0 for count in counts),
        bytes=sum(map(stored_bytes, members)),
        formats=tuple(sorted(formats)),
    )


def _cache_bytes(config: ModelConfig, files: CheckpointFiles) -> int:
    decoder = config.decoder
    norms = {
        _FLOAT_BYTES.get(tensor.dtype, 4)
        for name, tensor in files.tensors.items()
        if part_of(name) == "decoder" and name.endswith("norm.weight")
    }
    values = 2 * decoder.num_hidden_layers * decoder.block.attention.key_value_size
    return CACHE_TOKENS * values * max(norms, default=4)


def as_text(inspection: Inspection) -> str:
    """Return a description for the terminal."""

    def number(value: float | None, digits: int = 2) -> str:
        return "?" if value is None else f"{value:.{digits}f}"

    def count(value: int | None) -> str:
        return "?" if value is None else count_text(value)

    rows = [
        (
            part.name,
            str(part.tensors),
            count(part.weights),
            number(part.bits_per_weight),
            bytes_text(part.bytes),
            ", ".join(part.formats),
        )
        for part in inspection.parts
    ]
    rows.append(
        (
            "all",
            str(sum(part.tensors for part in inspection.parts)),
            count(inspection.weights),
            number(inspection.bits_per_weight),
            bytes_text(inspection.bytes),
            "",
        )
    )
    head = ("part", "tensors", "weights", "bits/weight", "size", "stored as")
    lines = [
        f"{inspection.path}: {inspection.layout} layout, {inspection.files} weight files",
        table(head, rows, left=(0, 5)),
        f"memory when loaded: {bytes_text(inspection.loaded_bytes)}",
    ]
    if inspection.cache_bytes is not None:
        size = bytes_text(inspection.cache_bytes)
        lines.append(f"KV cache for {CACHE_TOKENS:,} tokens: {size}")
    if inspection.unused_bytes:
        lines.append(f"never loaded: {bytes_text(inspection.unused_bytes)}")
    if inspection.missing:
        lines.append(f"missing here: {inspection.missing} tensors of the model")
    return "\n".join(lines)


def as_json(inspection: Inspection) -> dict[str, Any]:
    """Return everything that was found."""
    return asdict(inspection) | {
        "bytes": inspection.bytes,
        "weights": inspection.weights,
        "bits_per_weight": inspection.bits_per_weight,
    }
