"""Models for benchmarks: the released geometry with random weights, or a checkpoint of yours."""

import argparse
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map

from jvlm_mlx import Processor, convert, load
from jvlm_mlx.config.config_reader import ConfigReader
from jvlm_mlx.config.dtypes import FLOAT_DTYPES
from jvlm_mlx.config.model_config import ModelConfig
from jvlm_mlx.model import Model

from ..random_checkpoint import released_config, write_random_checkpoint

# A prime number of values, so that rows cut from the repeated block differ from each other.
_BLOCK_VALUES = 8_388_593


def released_model_config(layers: float = 1.0) -> ModelConfig:
    """Return the config of the release, or of the same model with a fraction of its layers."""
    return ModelConfig.read(ConfigReader(released_config(layers), "config.json"))


def random_model(config: ModelConfig, dtype: mx.Dtype = mx.float32, seed: int = 0) -> Model:
    """Return an evaluated model with made-up weights whose activations stay finite.

    Args:
        config: geometry.
        dtype: of all weights.
        seed: of the values. They are cut from one block of random numbers, since drawing
            billions of them would take longer than the benchmark.
    """
    model = Model(config)
    generator = np.random.default_rng(seed)
    block = generator.standard_normal(_BLOCK_VALUES, dtype=np.float32)

    def draw(array: mx.array) -> mx.array:
        # Matrices keep the scale of what goes through them; vectors act as norms near 1.
        deviation = array.shape[-1] ** -0.5 if array.ndim > 1 else 0.05
        start = int(generator.integers(_BLOCK_VALUES))
        values = np.resize(np.roll(block, start), array.shape) * np.float32(deviation)
        if array.ndim == 1:
            values += 1
        drawn = mx.array(values).astype(dtype)
        mx.eval(drawn)
        return drawn

    _replace(model, draw)
    model.prepare()
    return model


def weightless_model(config: ModelConfig, dtype: mx.Dtype = mx.float32) -> Model:
    """Return a model whose weights are one number shown many times: for looking at graphs."""
    model = Model(config)
    _replace(model, lambda array: constant(array.shape, dtype))
    model.prepare()
    return model


def constant(shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    """Return an evaluated array of any shape that takes the memory of one number."""
    array = mx.broadcast_to(mx.zeros((), dtype), shape)
    mx.eval(array)
    return array


def _replace(model: nn.Module, make: Callable[[mx.array], mx.array]) -> None:
    parameters: Any = tree_map(make, model.parameters())
    model.update(parameters)


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `loaded_checkpoint` is called with: model, layers and dtype."""
    parser.add_argument("--model", help="folder or repository; else random weights")
    parser.add_argument("--layers", type=float, default=1.0, help="fraction of the layers to keep")
    parser.add_argument("--dtype", choices=FLOAT_DTYPES, help="to compute in; else as stored")


@contextmanager
def loaded_checkpoint(
    model: str | None, layers: float, dtype: str | None, *, bits: int | None = None
) -> Iterator[tuple[Model, Processor]]:
    """Load a checkpoint, or the released geometry with random weights.

    Args:
        model: folder or repository; None for random weights.
        layers: fraction of the release's layers that the random model has.
        dtype: to compute in; None as stored (bfloat16 for random weights).
        bits: of each weight of the random model, as the converter packs it; None for all 16.
    """
    if model is not None:
        yield load(model, dtype=dtype)
        return
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_random_checkpoint(Path(folder) / "random", released_config(layers))
        if bits is not None:
            packed = Path(folder) / "packed"
            convert(checkpoint, packed, quantize=True, q_bits=bits)
            shutil.rmtree(checkpoint)
            checkpoint = packed
        yield load(checkpoint, dtype=dtype)
