"""Random weights of the demo that images can soon be learned with.

The release began with a trained tower and a trained decoder. From plain random weights a small
model takes very long to connect what it sees with what it says. What is arranged here instead
(`benchmarks/demo_model/TRAINING.md` tells what is known of its worth):

- a patch is seen as contrasts that are all about as strong, and white paper is zero;
- the last quarter of the tower's width belongs to positions, which are waves, so that a head can
  look at a neighbor from the start: a shift is a rotation of waves;
- heads of the first tower layers look at neighbors, and those of the pooling at one patch of the
  window each, as a convolution would;
- what the connector adds to a token is no smaller than the token.
"""

import math
from random import Random
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from numpy.typing import NDArray

from jvlm_mlx.model import Model

from .synthetic_tiles import make_synthetic_tile, patches_of

FloatArray = NDArray[np.float64]

_ASIDE = ((0, 1), (0, -1), (1, 0), (-1, 0))
_ACROSS = ((1, 1), (-1, -1), (1, -1), (-1, 1))
_NEIGHBOURS = (_ASIDE, _ASIDE, _ACROSS)
"""Rows and columns that each head looks away, for the first layers."""
_SHARPNESS = 1.4
"""Size of queries and keys made from waves: high enough that a head sees one patch at a time."""
_WAVE_HEIGHT = 1.4
_CONTRAST = 0.55
"""Standard deviation of what patches with something on them give."""
_FLOOR = 0.02
"""Variance below which a contrast counts as noise."""
_IMAGES = 400


def random_weights(model: Model, seed: int) -> dict[str, mx.array]:
    """Return weights to begin with, by path; the same seed gives the same."""
    weights = {}
    parameters: Any = tree_flatten(model.parameters())
    for number, (path, array) in enumerate(sorted(parameters)):
        key = mx.random.key(seed * 10_000 + number)
        weights[path] = _deviation(path, array.shape, len(model.layers)) * mx.random.normal(
            array.shape, key=key
        )
        if path.endswith("norm.weight"):
            weights[path] = mx.ones(array.shape)
    _see_contrasts(weights, model, seed)
    _look_around(weights, model)
    _pool_apart(weights, model)
    mx.eval(weights)
    return weights


def _see_contrasts(weights: dict[str, mx.array], model: Model, seed: int) -> None:
    """Make patches contrasts: principal components of patches, in random mixture."""
    tower = model.config.tower
    places = _place_size(model)
    count = tower.hidden_size - places
    patches = patches_of([make_synthetic_tile(Random(f"w{place}")) for place in range(_IMAGES)])
    # White is 1 in every value. (T, P, V) -> (N, V): those with something on them.
    values = patches.reshape(-1, patches.shape[-1]) - 1
    values = values[np.abs(values).max(axis=1) > 0.1]
    variances, components = np.linalg.eigh(values.T @ values / len(values))
    # The smallest come first.
    variances, components = variances[::-1][:count], components[:, ::-1][:, :count]
    mixture, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(count, count)))
    contrasts = mixture @ (components / np.sqrt(variances + _FLOOR)).T * _CONTRAST
    weight = np.concatenate([contrasts, np.zeros((places, contrasts.shape[1]))])
    weights["vision_tower.patch_embedding.weight"] = _array(weight)
    weights["vision_tower.patch_embedding.bias"] = _array(-weight.sum(axis=1))
    waves = _waves(tower.patch_grid, places) * _WAVE_HEIGHT
    weights["vision_tower.position_embedding"] = _array(
        np.concatenate([np.zeros((len(waves), count)), waves], axis=1)
    )


def _look_around(weights: dict[str, mx.array], model: Model) -> None:
    """Turn the heads of the first layers towards neighbors."""
    size = _place_size(model)
    for layer, neighbors in enumerate(_NEIGHBOURS[: len(model.vision_tower.layers)]):
        path = f"vision_tower.layers.{layer}.attention.qkv.weight"
        queries, keys = _looking(neighbors, model.config.tower.hidden_size, size)
        values = np.array(weights[path])[2 * len(queries) :]
        weights[path] = _array(np.concatenate([queries, keys, values]))
    for layer in range(len(_NEIGHBOURS), len(model.vision_tower.layers)):
        # A patch attends first to what is like itself.
        path = f"vision_tower.layers.{layer}.attention.qkv.weight"
        queries, _, values = np.split(np.array(weights[path]), 3)
        weights[path] = _array(np.concatenate([queries, queries, values]))


def _pool_apart(weights: dict[str, mx.array], model: Model) -> None:
    """Give each head of the pooling one patch of the window, seen from its middle."""
    config = model.config.connector
    rows, columns = config.pooling_size
    offsets = [
        (place // columns - (rows - 1) / 2, place % columns - (columns - 1) / 2)
        for place in range(rows * columns)
    ]
    heads = config.pooling.num_attention_heads
    chosen = tuple(offsets[head % len(offsets)] for head in range(heads))
    # The last of the features is of the earliest layer, where waves are cleanest.
    queries, keys = _looking(chosen, model.config.tower.feature_size, _place_size(model))
    weights["connector.pooling.q.weight"] = _array(queries)
    path = "connector.pooling.kv.weight"
    values = np.array(weights[path])[len(keys) :]
    weights[path] = _array(np.concatenate([keys, values]))


def _looking(
    offsets: tuple[tuple[float, float], ...], width: int, size: int
) -> tuple[FloatArray, FloatArray]:
    """Return queries and keys, (H D, width) each, of heads that look so many patches away.

    They read the waves in the last D = `size` of the `width` values that come in.
    """
    queries, keys = (np.zeros((len(offsets), size, width)) for _ in range(2))
    queries[:, :, -size:] = [_shift(*offset, size) for offset in offsets]
    keys[:, :, -size:] = np.eye(size)
    return (
        queries.reshape(-1, width) * _SHARPNESS,
        keys.reshape(-1, width) * _SHARPNESS,
    )


def _place_size(model: Model) -> int:
    """Return how many of the tower's values belong to positions: as many as a head compares."""
    return model.config.tower.block.attention.head_dim


def _frequencies(size: int) -> FloatArray:
    """Return size / 4 frequencies: from a wave over four grids to one over three patches."""
    return 2 * np.pi / np.geomspace(3, 36, size // 4)


def _side_waves(count: int, size: int) -> FloatArray:
    """Return (count, size / 2): sine and cosine of every frequency, in turn."""
    angles = np.arange(count)[:, None] * _frequencies(size)
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(count, -1)


def _waves(grid: tuple[int, int], size: int) -> FloatArray:
    """Return (P, size): waves of the row, then waves of the column."""
    rows, columns = (_side_waves(count, size) for count in grid)
    return np.concatenate(
        [np.repeat(rows, grid[1], axis=0), np.tile(columns, (grid[0], 1))], axis=1
    )


def _shift(down: float, right: float, size: int) -> FloatArray:
    """Return (size, size): what makes the waves of a place those of the place so far away."""
    matrix = np.zeros((size, size))
    for start, distance in ((0, down), (size // 2, right)):
        for number, angle in enumerate(_frequencies(size) * distance):
            place = start + 2 * number
            matrix[place : place + 2, place : place + 2] = [
                [np.cos(angle), np.sin(angle)],
                [-np.sin(angle), np.cos(angle)],
            ]
    return matrix


def _deviation(path: str, shape: tuple[int, ...], num_layers: int) -> float:
    if path.endswith(".bias") or path == "connector.pad_embed":
        return 0.0
    if path.startswith("decoder.embedding"):
        return 0.1
    # Keeps the scale of what goes through.
    deviation: float = shape[-1] ** -0.5
    if path == "connector.projector.up.weight":
        # A product of two halves that are both small would be nothing.
        return 2 * deviation
    if path == "connector.projector.down.weight":
        return deviation / 2
    if path.endswith(("out.weight", "down.weight")) and not path.startswith("connector."):
        # The more layers add to the residual stream, the less each of them does.
        return deviation / math.sqrt(2 * num_layers)
    return deviation / 2 if path.startswith("lm_head") else deviation


def _array(values: NDArray[Any]) -> mx.array:
    return mx.array(values.astype(np.float32))
