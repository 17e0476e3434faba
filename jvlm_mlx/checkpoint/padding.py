"""Padding of the tower's MLP, so that groups of its second projection come out even.

The released width of 4,304 is no multiple of a group of 32, 64 or 128. With zero rows in the
first projection and its bias, the activation of the added values is act(0) = 0 for every
activation there is, and zero columns in the second projection multiply that zero. So nothing
changes but the order of a sum.
"""

import mlx.core as mx

from ..config.model_config import ModelConfig


def padded_size(size: int, group_size: int) -> int:
    """Return the next multiple of a group size."""
    return -(-size // group_size) * group_size


def can_pad(config: ModelConfig) -> bool:
    """Return whether rows may be added at the end: a gated MLP has two halves there."""
    return not config.tower.block.mlp.gated


def resized_shape(
    path: str, shape: tuple[int, ...], mlp_size: int, config: ModelConfig
) -> tuple[int, ...]:
    """Return the shape of a parameter for another width of the tower's MLP.

    Args:
        path: of the parameter.
        shape: for the width that the config say.
        mlp_size: the other width.
        config: of the model.
    """
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
