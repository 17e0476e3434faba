"""Reads rows of tensors straight from safetensors files, without holding the rest.

`CheckpointFiles.take` hands out whole tensors, which is what a model needs. Here a table of
600 MB is worked through a few megabytes at a time. Reads name their position, so several
threads may read at once.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..config.dtypes import BY_CODE
from ..errors import CheckpointError
from .reader import CheckpointFiles


def as_array(values: npt.NDArray[Any], dtype: str) -> mx.array:
    """Return stored values as an mlx array."""
    array = mx.array(values)
    return array.view(mx.bfloat16) if dtype == "BF16" else array


def as_bytes(array: mx.array) -> npt.NDArray[Any]:
    """Return the values of an evaluated array as they are stored; not a copy."""
    return np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array, copy=False)


def as_float(array: mx.array) -> float:
    """Return the value of an array that has just one."""
    value = array.item()
    assert isinstance(value, float)
    return value


class RowReader:
    """The tensors of a checkpoint's files, by rows along the first axis."""

    def __init__(self, files: CheckpointFiles) -> None:
        """Open all files.

        Raises:
            CheckpointError: a file cannot be opened.
        """
        self.tensors = files.tensors
        self._descriptors: dict[Path, int] = {}
        self._starts: dict[str, int] = {}
        try:
            for file in sorted({tensor.file for tensor in files.tensors.values()}):
                self._open(file)
        except OSError as error:
            self.close()
            raise CheckpointError(f"{file} cannot be read: {error.strerror}") from None

    def _open(self, file: Path) -> None:
        descriptor = os.open(file, os.O_RDONLY)
        self._descriptors[file] = descriptor
        # The header was validated when the files were listed.
        length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
        header = json.loads(os.pread(descriptor, length, 8))
        for name, entry in header.items():
            if name != "__metadata__" and self.tensors[name].file == file:
                self._starts[name] = 8 + length + entry["data_offsets"][0]

    def read(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Return rows `start` to `stop` of a tensor.

        Raises:
            CheckpointError: the file became shorter, or cannot be read.
        """
        tensor = self.tensors[name]
        dtype = BY_CODE[tensor.dtype].numpy
        row_bytes = math.prod(tensor.shape[1:]) * dtype.itemsize
        position, size = self._starts[name] + start * row_bytes, (stop - start) * row_bytes
        data = b""
        try:
            while len(data) < size:
                more = os.pread(
                    self._descriptors[tensor.file], size - len(data), position + len(data)
                )
                if not more:
                    raise CheckpointError(f"{tensor.file} ends within {name}; download it again")
                data = data + more if data else more
        except OSError as error:
            raise CheckpointError(f"{tensor.file} cannot be read: {error.strerror}") from None
        return np.frombuffer(data, dtype).reshape(stop - start, *tensor.shape[1:])

    def array(self, name: str, start: int, stop: int) -> mx.array:
        """Return rows `start` to `stop` of a tensor as an mlx array."""
        return as_array(self.read(name, start, stop), self.tensors[name].dtype)

    def close(self) -> None:
        """Close all files."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __enter__(self) -> "RowReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def row_blocks(shape: tuple[int, ...], values: int) -> list[tuple[int, int]]:
    """Return starts and stops of blocks of rows with about `values` numbers each.

    A vector is one block, and so is whatever has no rows to cut.
    """
    if len(shape) < 2:
        return [(0, shape[0] if shape else 1)]
    step = max(1, values // max(1, math.prod(shape[1:])))
    return [(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]
