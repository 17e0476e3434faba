"""A checkpoint as conversion and comparison read it: the model's parameters, by rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from ..checkpoint.quantization import Quantization, quantizable_layers, unpack
from ..checkpoint.reader import CheckpointFiles
from ..checkpoint.row_reader import RowReader
from ..checkpoint.weights import Checkpoint, parameters
from ..config.dtypes import BY_CODE, FLOAT_DTYPES
from ..config.model_config import ModelConfig
from ..errors import CheckpointError
from ..model import Model


@dataclass(frozen=True)
class Source:
    """An open checkpoint."""

    checkpoint: Checkpoint
    reader: RowReader
    shapes: dict[str, tuple[int, ...]]
    """Shape of each parameter of the model as if nothing were quantized. No scales."""
    input_sizes: dict[str, int]
    """Inputs of each layer that may be quantized."""

    @property
    def config(self) -> ModelConfig:
        """Settings of the model, as stored."""
        return self.checkpoint.config

    def quantization(self, path: str) -> Quantization | None:
        """Return how a parameter is quantized, if it is."""
        layer, dot, kind = path.rpartition(".")
        return self.checkpoint.quantized.get(layer) if dot and kind == "weight" else None

    def dtype(self, path: str) -> str:
        """Return what a parameter's values are stored as.

        Of a quantized one, that is its scales' type; for 8-bit scales, what the model computes
        in. Parts of different types become float32 when they are joined.

        Raises:
            CheckpointError: the values are no floating-point numbers.
        """
        if self.quantization(path):
            path = f"{path.removesuffix('weight')}scales"
        tensors = self.reader.tensors
        stored = [tensors[part.name] for part in self.checkpoint.parts[path]
                  if part.name in tensors]  # fmt: skip
        dtypes = {tensor.dtype for tensor in stored}
        if path.endswith(".scales") and dtypes == {"U8"}:
            return self.dtype("decoder.norm.weight")
        for tensor in stored:
            if not BY_CODE[tensor.dtype].is_floating:
                raise CheckpointError(
                    f"{tensor.file}: {tensor.name} is stored as {tensor.dtype};"
                    f" expected {', '.join(dtype.code for dtype in FLOAT_DTYPES.values())}"
                )
        return dtypes.pop() if len(dtypes) == 1 else "F32"

    def stored(self, path: str, start: int, stop: int) -> mx.array:
        """Return rows of a parameter as they are stored, joined from its parts."""
        pieces = []
        offset = 0
        for part in self.checkpoint.parts[path]:
            first, last = max(start - offset, 0), min(stop - offset, part.shape[0])
            offset += part.shape[0]
            if first >= last:
                continue
            if part.name in self.reader.tensors:
                pieces.append(self.reader.array(part.name, first, last))
            else:
                pieces.append(mx.zeros((last - first, *part.shape[1:]), pieces[0].dtype
                                       if pieces else mx.float32))  # fmt: skip
        return pieces[0] if len(pieces) == 1 else mx.concatenate(pieces)

    def values(self, path: str, start: int, stop: int, dtype: mx.Dtype) -> mx.array:
        """Return rows of a parameter as numbers of a type, dequantized if need be."""
        quantization = self.quantization(path)
        if quantization is None:
            return self.stored(path, start, stop).astype(dtype)
        layer = path.removesuffix(".weight")
        packed = [
            self.stored(f"{layer}.{kind}", start, stop)
            for kind in ("weight", "scales", "biases")
            if f"{layer}.{kind}" in self.checkpoint.parts
        ]
        return unpack(packed, quantization, dtype)

    def used_tensors(self) -> dict[str, int]:
        """Return the stored tensors that the model is made of, with the rows it takes."""
        return {
            part.name: part.shape[0]
            for parts in self.checkpoint.parts.values()
            for part in parts
            if part.name in self.reader.tensors
        }


@contextmanager
def open_source(folder: Path, config: ModelConfig) -> Iterator[Source]:
    """Open a checkpoint; names, shapes and lengths of all files are checked, no weights read.

    Raises:
        CheckpointError: see `Checkpoint.open`.
    """
    checkpoint = Checkpoint.open(CheckpointFiles(folder), config)
    plain = Model(checkpoint.config)
    shapes = {path: tuple(array.shape) for path, array in parameters(plain)}
    input_sizes = {path: layer.weight.shape[-1] for path, layer in quantizable_layers(plain)}
    with RowReader(checkpoint.files) as reader:
        yield Source(checkpoint, reader, shapes, input_sizes)
