"""Writes safetensors files of which every byte's place is known beforehand.

So rows may be written in any order and by several threads, and nothing is held until a file is
complete.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..conversion.plan import DTYPE_BYTES, Output
from .reader import INDEX_NAME, SINGLE_NAME

MAX_SHARD_BYTES = 5_000_000_000
"""Largest file, as is usual on the Hub."""


def split_into_shards(tensors: Sequence[tuple[Output, ...]], max_bytes: int) -> list[list[Output]]:
    """Fill one shard after the other, keeping together what belongs together."""
    shards: list[list[Output]] = [[]]
    size = 0
    for group in tensors:
        group_size = sum(output.bytes for output in group)
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
    for output in sorted(outputs, key=lambda output: -DTYPE_BYTES[output.dtype]):
        offsets[output.name] = end
        header[output.name] = {
            "dtype": output.dtype,
            "shape": output.shape,
            "data_offsets": (end, end + output.bytes),
        }
        end += output.bytes
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
                descriptor = os.open(folder / name, flags, 0o644)
                self._descriptors.append(descriptor)
                header, starts = file_header(outputs)
                _write_all(descriptor, memoryview(header), 0)
                for output in outputs:
                    row_bytes = output.bytes // max(1, output.shape[0])
                    self._places[output.name] = (descriptor, starts[output.name], row_bytes)
                    weight_map[output.name] = name
            total = sum(output.bytes for outputs in shards for output in outputs)
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
