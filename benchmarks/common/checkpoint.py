"""A model with its processor: a checkpoint of yours, or a random one made for the run."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jvlm_mlx import Model, Processor, load

from ..random_checkpoint import released_config, write_random_checkpoint


@contextmanager
def loaded_checkpoint(
    model: str | None, layers: float, dtype: str | None
) -> Iterator[tuple[Model, Processor]]:
    """Load a checkpoint, or the released geometry with random weights.

    Args:
        model: folder or repository; None for random weights.
        layers: share of the release's layers that the random model has.
        dtype: to compute in; None as stored (bfloat16 for random weights).
    """
    if model is not None:
        yield load(model, dtype=dtype)
        return
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_random_checkpoint(Path(folder) / "random", released_config(layers))
        yield load(checkpoint, dtype=dtype)
