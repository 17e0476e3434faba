"""The parameters of a model as a checkpoint stores them: whole, by rows, or all in a model.

Loading is strict: every name, shape and type is checked before any data is read, and each tensor
is in memory once.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..config.dtypes import BY_CODE, ModuleDtypes
from ..config.model_config import ModelConfig
from ..errors import CheckpointError, explained
from ..files import reason
from ..model import Model, parameter_shapes
from ..model.parameters import is_quantizable, set_parameter
from ..progress import Progress, ProgressEvent
from .names import Layout
from .quantization import Quantization, infer_quantization, quantize_layers, unpack
from .reader import CheckpointFiles, StoredTensor
from .structure import Part, find_layout, modules_with_biases, parameter_parts, unused_tensors
from .validation import check_sizes, check_tensors, check_values

ValueCheck = Callable[[StoredTensor, npt.NDArray[Any]], None]
"""Called with stored values that were read."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder's tensors together with the model they make up."""

    files: CheckpointFiles
    layout: Layout
    config: ModelConfig
    """As in config.json, but with the biases that the tensors really have."""
    quantized: dict[str, Quantization]
    """Paths of the model's layers that are stored quantized."""
    parts: dict[str, tuple[Part, ...]]
    """What each parameter of the model is made of, along the first axis."""
    shapes: dict[str, tuple[int, ...]]
    """Shape of each parameter as if nothing were quantized. No scales."""
    input_sizes: dict[str, int]
    """Inputs of each layer that may be quantized, by path."""

    @classmethod
    def open(cls, files: CheckpointFiles, config: ModelConfig) -> "Checkpoint":
        """Recognize the layout and check every name, shape and type, before any data is read.

        Raises:
            CheckpointError: names follow no known layout, or a tensor is missing, surplus,
                misshapen or of another type: named with its file, expected and found shape.
        """
        layout = find_layout(files)
        check_sizes(files, config)
        config = config.with_biases(*modules_with_biases(files, config, layout))
        shapes = dict(parameter_shapes(config))
        input_sizes = {
            path.removesuffix(".weight"): shape[-1]
            for path, shape in shapes.items()
            if is_quantizable(path, shape)
        }
        quantized = {}
        for path, inputs in input_sizes.items():
            weight, scales, biases = (
                files.tensors.get(layout.sources(f"{path}.{kind}")[0])
                for kind in ("weight", "scales", "biases")
            )
            if weight and scales:
                quantized[path] = infer_quantization(weight, scales, biases is not None, inputs)
        stored_shapes = dict(shapes)
        for path, quantization in quantized.items():
            stored_shapes |= quantization.packed_shapes(path, shapes[f"{path}.weight"])
        parts = {
            path: parameter_parts(path, shape, config, layout)
            for path, shape in stored_shapes.items()
        }
        every = {part.name: part for pieces in parts.values() for part in pieces}
        check_tensors(
            files,
            {name: part.shape for name, part in every.items()},
            {name for name, part in every.items() if part.optional},
            unused_tensors(config, layout),
            {layout.sources(f"{path}.scales")[0].rpartition(".")[0]: quantization
             for path, quantization in quantized.items()},
        )  # fmt: skip
        return cls(files, layout, config, quantized, parts, shapes, input_sizes)

    def quantization(self, path: str) -> Quantization | None:
        """Return how a parameter is quantized, if it is."""
        layer, dot, kind = path.rpartition(".")
        return self.quantized.get(layer) if dot and kind == "weight" else None

    def dtype(self, path: str) -> str:
        """Return what a parameter's values are stored as, as safetensors spells it.

        Of a quantized one, that is its scales' type; for 8-bit scales, what the model computes
        in. Parts of different types become float32 when they are joined.
        """
        quantization = self.quantization(path)
        if quantization and quantization.mode != "affine":
            return self.dtype("decoder.norm.weight")
        if quantization:
            path = f"{path.removesuffix('weight')}scales"
        dtypes = {tensor.dtype for tensor in self._stored(path)}
        return dtypes.pop() if len(dtypes) == 1 else "F32"

    def take(self, path: str, dtype: mx.Dtype | None = None) -> mx.array:
        """Return a parameter of the model, joined from its parts but not read yet.

        Args:
            path: of the parameter.
            dtype: to convert floating-point values to; None keeps what is stored. Packed
                weights and 8-bit scales stay as they are.
        """
        arrays = []
        for part in self.parts[path]:
            if part.name in self.files.tensors:
                array = self.files.take(part.name)
                # Heads may be stored with the padding rows of the embedding table.
                arrays.append(array[: part.shape[0]])
            else:
                arrays.append(mx.zeros(part.shape, arrays[0].dtype if arrays else mx.float32))
        array = arrays[0] if len(arrays) == 1 else mx.concatenate(arrays)
        if dtype is not None and mx.issubdtype(array.dtype, mx.floating):
            array = array.astype(dtype)
        return array

    def rows(self, path: str, start: int, stop: int, check: ValueCheck | None = None) -> mx.array:
        """Return rows of a parameter as they are stored, joined from its parts.

        Args:
            path: of the parameter.
            start: first row.
            stop: row behind the last.
            check: called with what is read.
        """
        pieces: list[mx.array] = []
        offset = 0
        for part in self.parts[path]:
            first, last = max(start - offset, 0), min(stop - offset, part.shape[0])
            offset += part.shape[0]
            if first >= last:
                continue
            tensor = self.files.tensors.get(part.name)
            if tensor is None:
                dtype = pieces[0].dtype if pieces else mx.float32
                pieces.append(mx.zeros((last - first, *part.shape[1:]), dtype))
                continue
            values = self.files.rows(part.name, first, last)
            if check:
                check(tensor, values)
            pieces.append(as_array(values, tensor.dtype))
        return pieces[0] if len(pieces) == 1 else mx.concatenate(pieces)

    def values(
        self, path: str, start: int, stop: int, dtype: mx.Dtype, check: ValueCheck | None = None
    ) -> mx.array:
        """Return rows of a parameter as numbers of a type, dequantized if need be."""
        quantization = self.quantization(path)
        if quantization is None:
            return self.rows(path, start, stop, check).astype(dtype)
        layer = path.removesuffix(".weight")
        packed = [self.rows(f"{layer}.{kind}", start, stop, check) for kind in quantization.tensors]
        return unpack(packed, quantization, dtype)

    def value_check(self, *, float16: bool = False) -> ValueCheck:
        """Return a check of stored values that refuses NaN and infinite ones by name.

        Args:
            float16: whether values must also be small enough for float16.
        """
        modes = {
            self.parts[f"{layer}.scales"][0].name: quantization.mode
            for layer, quantization in self.quantized.items()
        }

        def check(tensor: StoredTensor, values: npt.NDArray[Any]) -> None:
            check_values(tensor, values, modes.get(tensor.name, ""), float16=float16)

        return check

    def main_dtype(self) -> mx.Dtype:
        """Return the type that most floating-point values are stored in."""
        values: Counter[str] = Counter()
        for path in self.parts:
            for tensor in self._stored(path):
                if BY_CODE[tensor.dtype].is_floating:
                    values[tensor.dtype] += math.prod(tensor.shape)
        return BY_CODE[values.most_common(1)[0][0]].mlx

    def loaded_bytes(self, dtypes: ModuleDtypes) -> int:
        """Return the memory of all weights once they are loaded in these types."""
        main, total = self.main_dtype(), 0
        for path, parts in self.parts.items():
            stored = {BY_CODE[tensor.dtype] for tensor in self._stored(path)}
            is_floating = any(dtype.is_floating for dtype in stored)
            size = (
                (dtypes.of(path) or main).size
                if is_floating
                else max(dtype.nbytes for dtype in stored)
            )
            total += size * sum(math.prod(part.shape) for part in parts)
        return total

    def build(
        self,
        dtypes: ModuleDtypes | None = None,
        progress: Progress | None = None,
        *,
        check_weights: bool = False,
    ) -> Model:
        """Return the model with all its weights in memory.

        Args:
            dtypes: what each module computes in. Where that is open, one type for all floating-
                point values: a single float32 norm would make every activation behind it float32.
            progress: called after every parameter that has been read.
            check_weights: whether to refuse NaN and infinite values.

        Raises:
            CheckpointError: a file cannot be read any more, or holds NaN or infinite values.
            RequestError: the device ran out of memory.
        """
        model = Model(self.config)
        quantize_layers(model, self.quantized)
        dtypes, main = dtypes or ModuleDtypes(), self.main_dtype()
        checks = {narrow: self.value_check(float16=narrow) for narrow in (False, True)}
        total = sum(self._stored_bytes(path) for path in self.parts)
        done = 0
        if progress:
            progress(ProgressEvent("loading", 0, total, "B"))
        for path in self.parts:
            # Evaluated one by one: what a parameter is made from is free before the next is read.
            dtype = dtypes.of(path) or main
            array = self.take(path, dtype)
            try:
                mx.eval(array)
            except RuntimeError as error:
                if explained(error) is not error:
                    raise explained(error) from error
                files = ", ".join(sorted({one.file.name for one in self._stored(path)}))
                raise CheckpointError(
                    f"{self.files.folder}: {path} cannot be read from {files}: {reason(error)}"
                ) from None
            if check_weights:
                check = checks[bool(dtype == mx.float16)]
                for tensor in self._stored(path):
                    check(tensor, self.files.rows(tensor.name, 0, tensor.shape[0]))
            set_parameter(model, path, array)
            done += self._stored_bytes(path)
            if progress:
                progress(ProgressEvent("loading", done, total, "B"))
        model.prepare()
        mx.clear_cache()  # what weights of another type were made from
        return model

    def _stored(self, path: str) -> list[StoredTensor]:
        tensors = self.files.tensors
        return [tensors[part.name] for part in self.parts[path] if part.name in tensors]

    def _stored_bytes(self, path: str) -> int:
        return sum(tensor.nbytes for tensor in self._stored(path))


def as_array(values: npt.NDArray[Any], dtype: str) -> mx.array:
    """Return stored values as an MLX array."""
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
