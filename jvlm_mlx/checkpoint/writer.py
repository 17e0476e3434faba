"""Writes checkpoints: weight files in shards, and whole folders with config, card and copies.

Every tensor's place in its file is known before anything is written, so rows are written as they
come, and nothing is held until a file is complete.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..config.dtypes import BY_CODE, BY_MLX
from ..config.json_file import read_json
from ..config.model_config import ModelConfig
from .model_card import CARD, trained_card
from .reader import INDEX_NAME, SINGLE_NAME
from .saving import CONFIG, config_text, copy_files, updated_config
from .weights import as_bytes

MAX_SHARD_BYTES = 5_000_000_000
"""Largest file, as is usual on the Hub."""


@dataclass(frozen=True)
class Output:
    """One tensor to write."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """As safetensors spells it."""

    @property
    def nbytes(self) -> int:
        """Size of the data."""
        return math.prod(self.shape) * BY_CODE[self.dtype].nbytes


def split_into_shards(tensors: Sequence[tuple[Output, ...]], max_bytes: int) -> list[list[Output]]:
    """Fill one shard after the other, keeping together what belongs together."""
    shards: list[list[Output]] = [[]]
    size = 0
    for group in tensors:
        group_size = sum(output.nbytes for output in group)
        if shards[-1] and size + group_size > max_bytes:
            shards.append([])
            size = 0
        shards[-1] += group
        size += group_size
    return shards


def shard_names(count: int) -> list[str]:
    """Return the file names that Hugging Face's libraries give to shards."""
    if count == 1:
        return [SINGLE_NAME]
    return [f"model-{number + 1:05}-of-{count:05}.safetensors" for number in range(count)]


def file_header(outputs: Sequence[Output]) -> tuple[bytes, dict[str, int]]:
    """Return a file's header and where each tensor starts.

    Tensors of wider types come first and the header is filled up to a multiple of 8, so that
    every tensor is aligned for those who map the file into memory.
    """
    header: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    offsets = {}
    end = 0
    for output in sorted(outputs, key=lambda output: -BY_CODE[output.dtype].nbytes):
        offsets[output.name] = end
        header[output.name] = {
            "dtype": output.dtype,
            "shape": output.shape,
            "data_offsets": (end, end + output.nbytes),
        }
        end += output.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {
        name: start + offset for name, offset in offsets.items()
    }


class ShardWriter:
    """The weight files of a folder. Nothing about it is visible to readers but at the end."""

    def __init__(self, folder: Path, shards: Sequence[Sequence[Output]]) -> None:
        """Create the files, with headers and index.

        Raises:
            OSError: the disk is full, or the folder cannot be written to.
        """
        self._folder = folder
        self._descriptors: list[int] = []
        self._places: dict[str, tuple[int, int, int]] = {}
        weight_map = {}
        try:
            for name, outputs in zip(shard_names(len(shards)), shards, strict=True):
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
                descriptor = os.open(folder / name, flags, 0o666)
                self._descriptors.append(descriptor)
                header, starts = file_header(outputs)
                _write_all(descriptor, memoryview(header), 0)
                for output in outputs:
                    row_bytes = output.nbytes // max(1, output.shape[0])
                    self._places[output.name] = (descriptor, starts[output.name], row_bytes)
                    weight_map[output.name] = name
            total = sum(output.nbytes for outputs in shards for output in outputs)
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        except BaseException:
            self._close()
            raise

    def write(self, name: str, start_row: int, rows: npt.NDArray[Any]) -> None:
        """Write rows of a tensor, as stored, to their place.

        Raises:
            OSError: the disk is full.
        """
        descriptor, start, row_bytes = self._places[name]
        if rows.size:
            data = np.ascontiguousarray(rows).data.cast("B")
            _write_all(descriptor, data, start + start_row * row_bytes)

    def finish(self) -> None:
        """Wait until everything is on the disk.

        Raises:
            OSError: the disk turned out to be full.
        """
        for descriptor in self._descriptors:
            os.fsync(descriptor)

    def _close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()


def _write_all(descriptor: int, data: memoryview, position: int) -> None:
    while len(data):
        done = os.pwrite(descriptor, data, position)
        data, position = data[done:], position + done


def write_weights(folder: Path, arrays: Mapping[str, mx.array]) -> None:
    """Write tensors under their names, in shards of the usual size.

    Raises:
        OSError: the disk is full.
    """
    outputs = [
        (Output(name, tuple(array.shape), BY_MLX[array.dtype].code),)
        for name, array in arrays.items()
    ]
    with ShardWriter(folder, split_into_shards(outputs, MAX_SHARD_BYTES)) as writer:
        for name, array in arrays.items():
            writer.write(name, 0, as_bytes(mx.contiguous(array)))
        writer.finish()


def write_model(
    source: Path, folder: Path, config: ModelConfig, arrays: Mapping[str, mx.array], how: str
) -> None:
    """Write a whole checkpoint in this project's layout, of weights that are the source's no more.

    Args:
        source: folder of the checkpoint that training began with; tokenizer, template and
            processor are copied from it.
        folder: an empty one.
        config: of the model, as it was loaded.
        arrays: all parameters by path, none of them quantized.
        how: what was done to the weights, for the model card.

    Raises:
        OSError: the disk is full.
        CheckpointError: a file of the source cannot be copied.
    """
    write_weights(folder, arrays)
    copy_files(source, folder)
    (folder / CARD).write_text(trained_card(source, how), encoding="utf-8")
    config_json = updated_config(
        read_json(source / CONFIG),
        config,
        dtype=BY_MLX[arrays["decoder.norm.weight"].dtype].name,
        # Padding of an earlier quantization may be gone.
        mlp_size=arrays["vision_tower.layers.0.mlp.down.weight"].shape[-1],
    )
    # Comes last: a folder without it is no checkpoint.
    (folder / CONFIG).write_text(config_text(config_json), encoding="utf-8")
