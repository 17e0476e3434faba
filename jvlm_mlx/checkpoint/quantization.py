"""Which layers of a checkpoint are quantized, and how: read off the tensors themselves.

A quantized weight is stored packed, with a scale for every group of inputs. The layer's input
size is known from the config, so packed width and number of scales give bits and group size;
a config that says otherwise cannot mislead.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from ..config.json_file import quoted
from ..config.model_config import ModelConfig
from ..errors import CheckpointError
from ..model.layers import quantized_layer
from .reader import StoredTensor

AFFINE_BITS = (2, 3, 4, 5, 6, 8)
AFFINE_GROUP_SIZES = (32, 64, 128)
# Formats with 8-bit scales and no biases: bits and group size tell them apart.
_FLOAT_MODES = {(4, 32): "mxfp4", (8, 32): "mxfp8", (4, 16): "nvfp4"}


@dataclass(frozen=True)
class Quantization:
    """How one layer's weight is packed, in mlx's words."""

    group_size: int
    """Inputs that share a scale."""
    bits: int
    mode: str
    """`affine`, `mxfp4`, `mxfp8` or `nvfp4`."""

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors that a quantized weight is stored as."""
        affine = self.mode == "affine"
        return ("weight", "scales", "biases") if affine else ("weight", "scales")

    def packed_shapes(self, layer: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor of a layer whose weight is (rows, inputs)."""
        rows, inputs = shape
        groups = (rows, inputs // self.group_size)
        packed = (rows, inputs * self.bits // 32)
        return {f"{layer}.{kind}": packed if kind == "weight" else groups for kind in self.tensors}


def infer_quantization(
    weight: StoredTensor, scales: StoredTensor, has_biases: bool, input_size: int
) -> Quantization:
    """Return how a packed weight of a known input size was quantized.

    Raises:
        CheckpointError: the shapes fit no format.
    """
    width, groups = (max(tensor.shape[-1:], default=0) for tensor in (weight, scales))
    bits, odd_bits = divmod(width * 32, input_size)
    group_size, odd_group = divmod(input_size, max(groups, 1))
    mode = "affine" if has_biases else _FLOAT_MODES.get((bits, group_size))
    fits = mode is not None and not odd_bits and not odd_group and weight.dtype == "U32"
    if mode == "affine":
        fits = fits and bits in AFFINE_BITS and group_size in AFFINE_GROUP_SIZES
    if not fits or mode is None:
        raise CheckpointError(
            f"{weight.file}: {weight.name} of shape {quoted(weight.shape)} with scales"
            f" {quoted(scales.shape)} is no quantization known of a layer with {input_size} inputs"
        )
    return Quantization(group_size=group_size, bits=bits, mode=mode)


def quantize_layers(model: nn.Module, layers: dict[str, Quantization]) -> None:
    """Replace the named layers of a model by quantized ones, ready to take packed weights."""
    modules = dict(model.named_modules())
    quantized = [(path, quantized_layer(modules[path], **asdict(layers[path]))) for path in layers]
    model.update_modules(tree_unflatten(quantized))


def pack(values: mx.array, quantization: Quantization) -> list[mx.array]:
    """Return packed weight and scales, and for the affine mode biases, as mlx makes them of values
    (rows, inputs) whose inputs are a multiple of the group size.
    """
    rows = len(values)
    values = _even(values, values.size // quantization.group_size, quantization)
    packed = mx.quantize(values, quantization.group_size, quantization.bits, quantization.mode)
    return [array[:rows] for array in packed]


def unpack(arrays: Sequence[mx.array], quantization: Quantization, dtype: mx.Dtype) -> mx.array:
    """Return the weights that packed ones encode, as `pack` returns them, in the type that affine
    weights are also computed in.
    """
    weight, scales, *biases = arrays
    if quantization.mode == "affine":
        scales, biases = scales.astype(dtype), [biases[0].astype(dtype)]
    rows, groups = len(weight), scales.size
    return mx.dequantize(
        _even(weight, groups, quantization),
        _even(scales, groups, quantization),
        biases[0] if biases else None,
        group_size=quantization.group_size,
        bits=quantization.bits,
        mode=quantization.mode,
        dtype=dtype,
    )[:rows]


def _even(array: mx.array, groups: int, quantization: Quantization) -> mx.array:
    """Add a row of zeros where mlx needs an even number of groups: of 16, on the CPU."""
    if quantization.group_size == 16 and groups % 2:
        return mx.pad(array, [(0, 1), (0, 0)])
    return array


# Padding of the tower's MLP, so that groups of its second projection come out even. The released
# width of 4,304 is no multiple of a group of 32, 64 or 128. With zero rows in the first projection
# and its bias, the activation of the added values is act(0) = 0 for every activation there is, and
# zero columns in the second projection multiply that zero. So nothing changes but the order of a
# sum.


def padded_size(size: int, group_size: int) -> int:
    """Return the next multiple of a group size."""
    return -(-size // group_size) * group_size


def can_pad(config: ModelConfig) -> bool:
    """Return whether rows may be added at the end: a gated MLP has two halves there."""
    return not config.tower.block.mlp.gated


def resized_shape(
    path: str, shape: tuple[int, ...], mlp_size: int, config: ModelConfig
) -> tuple[int, ...]:
    """Return the shape of a parameter for another width of the tower's MLP."""
    if mlp_size == config.tower.block.mlp.intermediate_size:
        return shape
    if path.startswith("vision_tower.") and ".mlp.up." in path:
        return (mlp_size, *shape[1:])
    if path.startswith("vision_tower.") and path.endswith(".mlp.down.weight"):
        return (shape[0], mlp_size)
    return shape


def fit(array: mx.array, shape: tuple[int, ...]) -> mx.array:
    """Cut an array, or extend it with zeros at the end of its axes, to a shape."""
    array = array[tuple(slice(size) for size in shape)]
    missing = [size - have for size, have in zip(shape, array.shape, strict=True)]
    return mx.pad(array, [(0, size) for size in missing]) if any(missing) else array
