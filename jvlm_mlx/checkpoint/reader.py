"""The safetensors files of a checkpoint folder: what is in them, and reading tensors or rows.

Headers are read first and checked against the sizes of their files, so that names, shapes and
truncated files are known, and no size is believed, before any data is read.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..config.dtypes import BY_CODE, DType
from ..config.json_file import parse_json, quoted, read_json
from ..errors import CheckpointError
from ..files import reason

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_MAX_HEADER_BYTES = 32 * 2**20  # the released checkpoint has 60 kB
_MAX_SIDE = 2**31 - 1  # of an array of MLX


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as its file's header describes it."""

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str
    """As safetensors spells it: `F32`, `BF16`, `U32`, ..."""
    start: int
    """Where its data starts in the file."""

    @property
    def nbytes(self) -> int:
        """Size of the data in the file."""
        return math.prod(self.shape) * BY_CODE[self.dtype].nbytes


class CheckpointFiles:
    """All tensors of a folder. Each may be taken whole or by rows; nothing is kept."""

    def __init__(self, folder: Path, only: Path | None = None) -> None:
        """Read the headers of all weight files.

        Args:
            folder: of the checkpoint.
            only: the one file of it to read, whatever the index says.

        Raises:
            CheckpointError: there are no weights, the index names a file that is absent or lies
                elsewhere, or a tensor its file does not have, or a file is truncated.
        """
        self.folder = folder
        self.tensors: dict[str, StoredTensor] = {}
        self._open: dict[Path, dict[str, mx.array]] = {}
        if only is not None:
            self._add(only)
            return
        index = folder / INDEX_NAME
        expected = self._read_index(index) if index.exists() else {}
        for file in sorted(set(expected.values())) or self._files_without_index():
            self._add(file)
        for name, file in expected.items():
            if name not in self.tensors or self.tensors[name].file != file:
                raise CheckpointError(
                    f"{index} puts {quoted(name)} into {file.name}, which has it not"
                )

    def _read_index(self, index: Path) -> dict[str, Path]:
        content = read_json(index)
        weight_map = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index} has no weight_map")
        files: dict[Any, Path] = {}
        for name in set(map(str, weight_map.values())):
            file = self.folder / name
            if Path(name).name != name or not belongs_to(self.folder, file):
                raise CheckpointError(
                    f"{index} names {quoted(name)}; weights must lie in the folder itself"
                )
            if not _is_file(file):
                raise CheckpointError(
                    f"{self.folder} has no {shown(name)}, which {index.name} names;"
                    " download it again or copy the missing file"
                )
            files[name] = file
        return {name: files[str(file)] for name, file in weight_map.items()}

    def _files_without_index(self) -> list[Path]:
        single = self.folder / SINGLE_NAME
        files = [single] if single.is_file() else sorted(self.folder.glob("*.safetensors"))
        if not files:
            raise CheckpointError(f"{self.folder} has no {SINGLE_NAME} and no {INDEX_NAME}")
        return files

    def _add(self, file: Path) -> None:
        for tensor in read_header(file):
            if tensor.name in self.tensors:
                other = self.tensors[tensor.name].file.name
                raise CheckpointError(f"{quoted(tensor.name)} is in {other} and in {file.name}")
            self.tensors[tensor.name] = tensor

    def take(self, name: str) -> mx.array:
        """Return a tensor, not read yet: the data comes when it is evaluated.

        The array is handed over, and the memory is free as soon as the caller drops it. Taking
        a tensor again reads it again.

        Raises:
            CheckpointError: the file cannot be read any more.
        """
        file = self.tensors[name].file
        if name not in self._open.get(file, {}):
            try:
                loaded = mx.load(str(file), format="safetensors")
            except (RuntimeError, ValueError) as error:
                raise CheckpointError(f"{file} cannot be read: {reason(error)}") from None
            assert isinstance(loaded, dict)
            self._open[file] = loaded
        return self._open[file].pop(name)

    def rows(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Return rows `start` to `stop` of a tensor, as stored, along the first axis.

        Raises:
            CheckpointError: the file has become shorter, or cannot be read.
        """
        tensor = self.tensors[name]
        dtype: DType = BY_CODE[tensor.dtype]
        row_values = math.prod(tensor.shape[1:])
        count = (stop - start) * row_values
        offset = tensor.start + start * row_values * dtype.nbytes
        try:
            values = np.fromfile(tensor.file, dtype.numpy, count, offset=offset)
        except OSError as error:
            raise CheckpointError(f"{tensor.file} cannot be read: {reason(error)}") from None
        if len(values) < count:
            raise CheckpointError(f"{tensor.file} ends within {name}; download it again")
        return values.reshape(stop - start, *tensor.shape[1:])


def row_blocks(shape: tuple[int, ...], max_values: int) -> list[tuple[int, int]]:
    """Return starts and stops of blocks of rows with at most so many numbers each.

    A vector is one block, and so is whatever has no rows to cut.
    """
    if len(shape) < 2:
        return [(0, shape[0] if shape else 1)]
    step = max(1, max_values // max(1, math.prod(shape[1:])))
    return [(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


def belongs_to(folder: Path, file: Path) -> bool:
    """Return whether a file is the folder's own: no symbolic link to elsewhere.

    In the Hub's cache every file is a link, from `snapshots/COMMIT` into `blobs` beside it.
    """
    try:
        folder, target = folder.resolve(), Path(os.path.realpath(file))
    except (OSError, ValueError):  # no name that a file can have
        return False
    blobs = folder.parent.parent / "blobs" if folder.parent.name == "snapshots" else folder
    return target.parent in (folder, blobs)


def read_header(file: Path) -> list[StoredTensor]:
    """Return what a safetensors file holds, in the order of its header.

    Raises:
        CheckpointError: the file cannot be read, is truncated, no safetensors file, or has
            tensors of a type that no model is made of.
    """
    try:
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            length = int.from_bytes(opened.read(8), "little")
            if not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
                raise ValueError(f"its header has {length} bytes, the file {size}")
            header = parse_json(opened.read(length))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {reason(error)}") from None
    except ValueError as error:
        raise _damaged(file, str(error)) from None
    if not isinstance(header, dict):
        raise _damaged(file, "its header is no JSON object")
    header.pop("__metadata__", None)
    tensors = [_tensor(file, name, entry, 8 + length) for name, entry in header.items()]
    end = 8 + length
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.nbytes)):
        if tensor.start != end:
            raise _damaged(file, f"{quoted(tensor.name)} does not follow what is before it")
        end += tensor.nbytes
    if end != size:
        raise _damaged(file, f"its tensors end at byte {end}, the file at {size}")
    return tensors


def _tensor(file: Path, name: str, entry: Any, data_start: int) -> StoredTensor:
    entry = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not (
        isinstance(dtype, str) and _whole_numbers(shape) and _whole_numbers(offsets)
        and len(offsets) == 2
    ):  # fmt: skip
        raise _damaged(file, f"{quoted(name)} has no type, shape or place")
    if dtype not in BY_CODE:
        raise CheckpointError(
            f"{file}: {shown(name)} is stored as {shown(dtype)}; supported: {', '.join(BY_CODE)}"
        )
    if any(side > _MAX_SIDE for side in shape):
        raise _damaged(file, f"{quoted(name)} has shape {quoted(tuple(shape))}")
    tensor = StoredTensor(name, file, tuple(shape), dtype, data_start + offsets[0])
    if offsets[1] - offsets[0] != tensor.nbytes:
        raise _damaged(file, f"{quoted(name)} has another size than its shape says")
    return tensor


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in value
    )


def _damaged(file: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{file} is truncated or no safetensors file ({what}); download it again"
    )


def _is_file(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError:  # a name that is too long, say
        return False


def shown(name: str) -> str:
    """Return a name as messages quote it: plain where it is short."""
    return name if len(name) <= 80 and name.isprintable() else quoted(name)
