"""Models for benchmarks: the released geometry with random weights, or a checkpoint of yours."""

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

from jvlm_mlx import Processor, convert, load
from jvlm_mlx.config.config_reader import ConfigReader
from jvlm_mlx.config.dtypes import FLOAT_DTYPES
from jvlm_mlx.config.model_config import ModelConfig
from jvlm_mlx.model import Model

from ..random_checkpoint import released_config, write_random_checkpoint


def released_model_config(layers: float = 1.0) -> ModelConfig:
    """Return the config of the release, or of the same model with a fraction of its layers."""
    return ModelConfig.read(ConfigReader(released_config(layers), "config.json"))


def weightless_model(config: ModelConfig, dtype: mx.Dtype = mx.float32) -> Model:
    """Return a model whose weights are one number shown many times: for looking at graphs."""
    model = Model(config)
    parameters: Any = tree_map(lambda array: constant(array.shape, dtype), model.parameters())
    model.update(parameters)
    model.prepare()
    return model


def constant(shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    """Return an evaluated array of any shape that takes the memory of one number."""
    array = mx.broadcast_to(mx.zeros((), dtype), shape)
    mx.eval(array)
    return array


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
