"""What happens to each tensor: decided from headers alone, before any weight is read.

Everything about the output follows from the plan: names, shapes, types, and so all sizes and
places in the files.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from ..checkpoint.names import OWN, part_of
from ..checkpoint.padding import can_pad, padded_size, resized_shape
from ..checkpoint.quantization import Quantization
from ..checkpoint.weights import stored_bytes
from ..config.dtypes import FLOAT_DTYPES
from ..config.model_config import ModelConfig
from ..errors import CheckpointError, RequestError
from .conversion_options import ConversionOptions
from .recipes import choose_quantization
from .source import Source

DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U32": 4, "U8": 1}


@dataclass(frozen=True)
class Output:
    """One tensor of the output."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """As safetensors spells it."""

    @property
    def bytes(self) -> int:
        """Size of the data."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


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
        return packed_outputs(self.path, self.shape, self.dtype, self.quantization)


def packed_outputs(
    path: str, shape: tuple[int, ...], dtype: str, quantization: Quantization
) -> tuple[Output, ...]:
    """Return the tensors of a quantized weight of shape (rows, inputs), as mlx lays them out."""
    rows, inputs = shape
    layer = path.removesuffix("weight")
    groups = (rows, inputs // quantization.group_size)
    weight = Output(path, (rows, inputs * quantization.bits // 32), "U32")
    if quantization.mode != "affine":
        return weight, Output(f"{layer}scales", groups, "U8")
    return (
        weight,
        Output(f"{layer}scales", groups, dtype),
        Output(f"{layer}biases", groups, dtype),
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
    """Bytes of tensors in the source, by part."""
    same_layout: bool
    """Whether the source has this project's layout already."""

    @property
    def unchanged(self) -> bool:
        """Whether all tensors of the output stand in the source, the same bit for bit."""
        return self.same_layout and all(parameter.unchanged for parameter in self.parameters)

    @cached_property
    def output_bytes(self) -> dict[str, int]:
        """Bytes of tensors in the output, by part."""
        sizes: dict[str, int] = {}
        for parameter in self.parameters:
            part = part_of(parameter.path) or parameter.path
            size = sum(output.bytes for output in parameter.outputs)
            sizes[part] = sizes.get(part, 0) + size
        return sizes

    @cached_property
    def values(self) -> dict[str, int]:
        """Numbers of the model, by part; padding left out."""
        counts: dict[str, int] = {}
        for parameter in self.parameters:
            part = part_of(parameter.path) or parameter.path
            counts[part] = counts.get(part, 0) + parameter.values
        return counts

    @property
    def bits_per_weight(self) -> float:
        """Bits of the output, scales and padding included, per number of the model."""
        return sum(self.output_bytes.values()) * 8 / sum(self.values.values())


def plan_conversion(
    source: Source,
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
    tensors = source.reader.tensors
    used = set(source.used_tensors())
    if zero_decoder_biases:
        used -= {
            part.name
            for path, parts in source.checkpoint.parts.items()
            if is_decoder_bias(path)
            for part in parts
        }
    source_bytes: dict[str, int] = {}
    for name, tensor in tensors.items():
        part = part_of(name) or name
        source_bytes[part] = source_bytes.get(part, 0) + stored_bytes(tensor)
    return Plan(
        parameters=tuple(parameters),
        layers=frozenset(source.input_sizes),
        dropped=tuple(name for name in tensors if name not in used),
        mlp_size=mlp_size,
        unpadded_mlp_size=unpadded,
        decoder_biases=any(is_decoder_bias(parameter.path) for parameter in parameters),
        unfit=tuple(unfit),
        source_bytes=source_bytes,
        same_layout=source.checkpoint.layout.name == OWN,
    )


def is_decoder_bias(path: str) -> bool:
    """Return whether a parameter is a bias of the decoder's queries, keys and values."""
    return path.startswith("decoder.") and path.endswith(".attention.qkv.bias")


def _wanted(source: Source, options: ConversionOptions) -> dict[str, Quantization | None]:
    """Return how each layer's weight shall be quantized, whether it can be or not."""
    wanted: dict[str, Quantization | None] = {}
    for layer in source.input_sizes:
        path = f"{layer}.weight"
        have = None if options.dequantize else source.quantization(path)
        if not options.quantize:
            wanted[path] = have
            continue
        wanted[path] = choose_quantization(
            options.rules,
            layer,
            options.quantization,
            last_layer=source.config.decoder.num_hidden_layers - 1,
            tied_head=source.config.tie_word_embeddings,
        )
        if have not in (None, wanted[path]):
            raise RequestError(
                f"{source.checkpoint.files.folder}: {layer} is quantized already, and in another"
                " way; convert the original, or add dequantize to quantize it a second time"
            )
    return wanted


def _mlp_sizes(
    source: Source, wanted: dict[str, Quantization | None], unpadded_size: int | None
) -> tuple[int, int]:
    """Return the width of the tower's MLP in the output, and its width without padding."""
    config: ModelConfig = source.config
    size = config.tower.block.mlp.intermediate_size
    unpadded = unpadded_size or size
    if not 0 < unpadded <= size:
        raise CheckpointError(
            f"config.json: a width of {size} cannot be padded from {unpadded}; convert the"
            " original again"
        )
    paths = [
        f"vision_tower.layers.{layer}.mlp.down.weight"
        for layer in range(config.tower.num_used_layers)
    ]
    if not can_pad(config):
        return size, unpadded
    groups = [quantization.group_size for path in paths if (quantization := wanted[path])]
    return (padded_size(unpadded, max(groups)) if groups else unpadded), unpadded
