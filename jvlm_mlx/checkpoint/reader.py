"""The safetensors files of a checkpoint folder: what is in them, and reading one tensor at a time.

Headers are read first, so that names, shapes and truncated files are known before any data is.
"""

from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from safetensors import SafetensorError, safe_open

from ..config.dtypes import BY_CODE
from ..config.json_file import read_json
from ..errors import CheckpointError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as its file's header describes it."""

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str
    """As safetensors spells it: `F32`, `BF16`, `U32`, ..."""


class CheckpointFiles:
    """All tensors of a folder; `take` hands each out once and keeps nothing."""

    def __init__(self, folder: Path, only: Path | None = None) -> None:
        """Read the headers of all weight files.

        Args:
            folder: of the checkpoint.
            only: the one file of it to read, whatever the index says.

        Raises:
            CheckpointError: there are no weights, the index names a file that is absent or a
                tensor its file does not have, or a file is truncated.
        """
        self.folder = folder
        self.tensors: dict[str, StoredTensor] = {}
        self._open: dict[Path, dict[str, mx.array]] = {}
        if only is not None:
            self._read_header(only)
            return
        index = folder / INDEX_NAME
        expected = self._read_index(index) if index.exists() else {}
        for file in sorted(set(expected.values())) or self._files_without_index():
            self._read_header(file)
        for name, file in expected.items():
            if name not in self.tensors or self.tensors[name].file != file:
                raise CheckpointError(f"{index} puts {name} into {file.name}, which has it not")

    def _read_index(self, index: Path) -> dict[str, Path]:
        weight_map = read_json(index)
        weight_map = weight_map.get("weight_map") if isinstance(weight_map, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index} has no weight_map")
        files = {}
        for name, file_name in weight_map.items():
            file = self.folder / str(file_name)
            if not file.is_file():
                raise CheckpointError(
                    f"{self.folder} has no {file_name}, which {index.name} names;"
                    " download it again or copy the missing file"
                )
            files[name] = file
        return files

    def _files_without_index(self) -> list[Path]:
        single = self.folder / SINGLE_NAME
        files = [single] if single.is_file() else sorted(self.folder.glob("*.safetensors"))
        if not files:
            raise CheckpointError(f"{self.folder} has no {SINGLE_NAME} and no {INDEX_NAME}")
        return files

    def _read_header(self, file: Path) -> None:
        try:
            with safe_open(file, framework="numpy") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a dictionary
                    part = opened.get_slice(name)
                    if name in self.tensors:
                        raise CheckpointError(
                            f"{name} is in {self.tensors[name].file.name} and in {file.name}"
                        )
                    dtype = part.get_dtype()
                    if dtype not in BY_CODE:
                        raise CheckpointError(
                            f"{file}: {name} is stored as {dtype}; supported: {', '.join(BY_CODE)}"
                        )
                    self.tensors[name] = StoredTensor(name, file, tuple(part.get_shape()), dtype)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file} is truncated or no safetensors file ({error}); download it again"
            ) from None

    @property
    def total_bytes(self) -> int:
        """Size of all weight files."""
        return sum(file.stat().st_size for file in {t.file for t in self.tensors.values()})

    def take(self, name: str) -> mx.array:
        """Return a tensor, not read yet: the data comes when it is evaluated.

        The array is handed over, and the memory is free as soon as the caller drops it. Taking
        a tensor again reads it again.
        """
        file = self.tensors[name].file
        if name not in self._open.get(file, {}):
            loaded = mx.load(str(file))
            assert isinstance(loaded, dict)
            self._open[file] = loaded
        return self._open[file].pop(name)
