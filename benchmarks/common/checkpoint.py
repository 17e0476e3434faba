"""A model with its processor: a checkpoint of yours, or a random one made for the run."""

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jvlm_mlx import Model, Processor, convert, load
from jvlm_mlx.config.dtypes import FLOAT_DTYPES

from ..random_checkpoint import released_config, write_random_checkpoint


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `loaded_checkpoint` is called with: model, layers and dtype."""
    parser.add_argument("--model", help="folder or repository; else random weights")
    parser.add_argument("--layers", type=float, default=1.0, help="share of the layers to keep")
    parser.add_argument("--dtype", choices=FLOAT_DTYPES, help="to compute in; else as stored")


@contextmanager
def loaded_checkpoint(
    model: str | None, layers: float, dtype: str | None, *, bits: int | None = None
) -> Iterator[tuple[Model, Processor]]:
    """Load a checkpoint, or the released geometry with random weights.

    Args:
        model: folder or repository; None for random weights.
        layers: share of the release's layers that the random model has.
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
