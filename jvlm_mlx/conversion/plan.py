"""What happens to each tensor: decided from headers alone, before any weight is read.

Everything about the output follows from the plan: names, shapes, types, and so all sizes and
places in the files.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from ..checkpoint.names import MODULES, OWN, module_of
from ..checkpoint.quantization import Quantization, can_pad, padded_size, resized_shape
from ..checkpoint.structure import is_decoder_bias
from ..checkpoint.weights import Checkpoint
from ..checkpoint.writer import Output
from ..config.dtypes import BY_CODE, FLOAT_DTYPES
from ..errors import CheckpointError, RequestError
from .recipes import RECIPES, ConversionOptions, choose_quantization


@dataclass(frozen=True)
class ParameterPlan:
    """What becomes of one parameter of the model."""

    path: str
    source_shape: tuple[int, ...]
    """Shape as if it were not quantized, before padding is added or removed."""
    shape: tuple[int, ...]
    """The same, after."""
    values: int
    """Numbers in it, padding left out."""
    source_dtype: str
    """Of the values, or of scales if they are floating-point numbers of more than 8 bits."""
    dtype: str
    """The same, after."""
    source_quantization: Quantization | None
    quantization: Quantization | None

    @property
    def keeps_packed(self) -> bool:
        """Whether a quantized weight is passed on as it is."""
        return self.quantization is not None and self.quantization == self.source_quantization

    @property
    def unchanged(self) -> bool:
        """Whether the values stay what they are, bit for bit."""
        return (
            self.quantization == self.source_quantization
            and self.dtype == self.source_dtype
            and self.shape == self.source_shape
        )

    @property
    def outputs(self) -> tuple[Output, ...]:
        """The tensors it becomes: one, or packed weight, scales and perhaps biases."""
        if self.quantization is None:
            return (Output(self.path, self.shape, self.dtype),)
        layer = self.path.removesuffix(".weight")
        scales = self.dtype if self.quantization.mode == "affine" else "U8"
        return tuple(
            Output(name, shape, "U32" if name == self.path else scales)
            for name, shape in self.quantization.packed_shapes(layer, self.shape).items()
        )


@dataclass(frozen=True)
class Plan:
    """A whole conversion."""

    parameters: tuple[ParameterPlan, ...]
    layers: frozenset[str]
    """Paths of all layers that could be quantized."""
    dropped: tuple[str, ...]
    """Tensors of the source that nothing needs."""
    mlp_size: int
    """Width of the tower's MLP in the output."""
    unpadded_mlp_size: int
    """The same without padding."""
    decoder_biases: bool
    """Whether the output has biases on the decoder's queries, keys and values."""
    unfit: tuple[str, ...]
    """Layers that the recipe quantizes but whose inputs are no multiple of the group."""
    source_bytes: dict[str, int]
    """Bytes of tensors in the source, by module."""
    same_layout: bool
    """Whether the source has this project's layout already."""

    @property
    def unchanged(self) -> bool:
        """Whether all tensors of the output are in the source, the same bit for bit."""
        return self.same_layout and all(parameter.unchanged for parameter in self.parameters)

    @cached_property
    def output_bytes(self) -> dict[str, int]:
        """Bytes of tensors in the output, by module."""
        sizes: dict[str, int] = {}
        for parameter in self.parameters:
            module = module_of(parameter.path) or parameter.path
            size = sum(output.nbytes for output in parameter.outputs)
            sizes[module] = sizes.get(module, 0) + size
        return sizes

    def modules(self) -> Iterator[tuple[str, int, int]]:
        """Yield each module, its numbers, and its bytes in the output."""
        for module in MODULES:
            if module in self.values:
                yield module, self.values[module], self.output_bytes[module]

    @cached_property
    def values(self) -> dict[str, int]:
        """Numbers of the model, by module; padding left out."""
        counts: dict[str, int] = {}
        for parameter in self.parameters:
            module = module_of(parameter.path) or parameter.path
            counts[module] = counts.get(module, 0) + parameter.values
        return counts

    @property
    def bits_per_weight(self) -> float:
        """Bits of the output, scales and padding included, per number of the model."""
        return sum(self.output_bytes.values()) * 8 / sum(self.values.values())

    @property
    def dtypes(self) -> list[str]:
        """Types of what is not packed, as safetensors spells them."""
        return sorted({parameter.dtype for parameter in self.parameters})

    @property
    def dtype(self) -> str:
        """What the output computes in, as config.json spells it."""
        dtypes = {parameter.path: parameter.dtype for parameter in self.parameters}
        return BY_CODE[dtypes["decoder.norm.weight"]].name

    @cached_property
    def quantization(self) -> dict[str, Any]:
        """The entry of config.json as mlx-lm reads it; empty if nothing is quantized.

        The format of most weights is at the top. Each layer that differs has an entry under
        its path: its own format, or false for none.
        """
        layers = {
            parameter.path.removesuffix(".weight"): parameter
            for parameter in self.parameters
            if parameter.path.removesuffix(".weight") in self.layers
        }
        weights: Counter[Quantization] = Counter()
        for parameter in layers.values():
            if parameter.quantization:
                weights[parameter.quantization] += parameter.values
        if not weights:
            return {}
        common = weights.most_common(1)[0][0]
        entries: dict[str, Any] = asdict(common)
        for path, parameter in layers.items():
            if parameter.quantization != common:
                entries[path] = asdict(parameter.quantization) if parameter.quantization else False
        return entries


def plan_conversion(
    source: Checkpoint,
    options: ConversionOptions,
    *,
    unpadded_mlp_size: int | None = None,
    zero_decoder_biases: bool = False,
) -> Plan:
    """Decide what happens to each tensor.

    Args:
        source: the open checkpoint.
        options: what was asked for.
        unpadded_mlp_size: width of the tower's MLP before an earlier conversion padded it.
        zero_decoder_biases: whether the decoder's biases are there but all zero.

    Raises:
        RequestError: a layer is quantized in another way already.
        CheckpointError: the width of the tower's MLP contradicts the one before padding.
    """
    wanted = _wanted(source, options)
    mlp_size, unpadded = _mlp_sizes(source, wanted, unpadded_mlp_size)
    parameters = []
    unfit = []
    for path, source_shape in source.shapes.items():
        if zero_decoder_biases and is_decoder_bias(path):
            continue
        shape = resized_shape(path, source_shape, mlp_size, source.config)
        unpadded_shape = resized_shape(path, source_shape, unpadded, source.config)
        quantization = wanted.get(path)
        if quantization and shape[-1] % quantization.group_size:
            unfit.append(path.removesuffix(".weight"))
            quantization = None
        source_dtype = source.dtype(path)
        parameters.append(
            ParameterPlan(
                path=path,
                source_shape=source_shape,
                shape=shape,
                values=math.prod(unpadded_shape),
                source_dtype=source_dtype,
                dtype=FLOAT_DTYPES[options.dtype].code if options.dtype else source_dtype,
                source_quantization=source.quantization(path),
                quantization=quantization,
            )
        )
    tensors = source.files.tensors
    used = {part.name for parts in source.parts.values() for part in parts if part.name in tensors}
    if zero_decoder_biases:
        used -= {
            part.name
            for path, parts in source.parts.items()
            if is_decoder_bias(path)
            for part in parts
        }
    source_bytes: dict[str, int] = {}
    for name, tensor in tensors.items():
        module = module_of(name) or name
        source_bytes[module] = source_bytes.get(module, 0) + tensor.nbytes
    return Plan(
        parameters=tuple(parameters),
        layers=frozenset(source.input_sizes),
        dropped=tuple(name for name in tensors if name not in used),
        mlp_size=mlp_size,
        unpadded_mlp_size=unpadded,
        decoder_biases=any(is_decoder_bias(parameter.path) for parameter in parameters),
        unfit=tuple(unfit),
        source_bytes=source_bytes,
        same_layout=source.layout.name == OWN,
    )


def _wanted(source: Checkpoint, options: ConversionOptions) -> dict[str, Quantization | None]:
    """Return how each layer's weight shall be quantized, whether it can be or not."""
    wanted: dict[str, Quantization | None] = {}
    for layer in source.input_sizes:
        path = f"{layer}.weight"
        have = None if options.dequantize else source.quantization(path)
        if not options.quantize:
            wanted[path] = have
            continue
        wanted[path] = choose_quantization(
            RECIPES[options.recipe_name],
            layer,
            options.quantization,
            last_layer=source.config.decoder.num_hidden_layers - 1,
            tied_head=source.config.tie_word_embeddings,
        )
        if have not in (None, wanted[path]):
            raise RequestError(
                f"{source.files.folder}: {layer} is quantized already, and in another"
                " way; convert the source, or add dequantize to quantize it a second time"
            )
    return wanted


def _mlp_sizes(
    source: Checkpoint, wanted: dict[str, Quantization | None], unpadded_size: int | None
) -> tuple[int, int]:
    """Return the width of the tower's MLP in the output, and its width without padding."""
    config = source.config
    size = config.tower.block.mlp.intermediate_size
    unpadded = unpadded_size or size
    if not 0 < unpadded <= size:
        raise CheckpointError(
            f"config.json: a width of {size} cannot be padded from {unpadded}; convert the"
            " source again"
        )
    paths = [
        f"vision_tower.layers.{layer}.mlp.down.weight"
        for layer in range(config.tower.num_used_layers)
    ]
    if not can_pad(config):
        return size, unpadded
    groups = [quantization.group_size for path in paths if (quantization := wanted[path])]
    return (padded_size(unpadded, max(groups)) if groups else unpadded), unpadded
