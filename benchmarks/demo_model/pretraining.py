"""Pretrains the vision tower and the connector of an initialized demo on synthetic tiles.

    python -m benchmarks.demo_model.pretraining INITIALIZED OUT

The release starts from a vision tower that was pretrained elsewhere. Here, tower and connector
learn to classify what is at each place of every window of patches. The classifiers are dropped
afterwards; the decoder keeps its random weights.
"""

import argparse
import math
import statistics
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from huggingface_hub.utils import tqdm
from mlx.optimizers import AdamW, clip_grad_norm

from jvlm_mlx.checkpoint.loader import load
from jvlm_mlx.checkpoint.saving import check_target
from jvlm_mlx.checkpoint.weights import as_float
from jvlm_mlx.checkpoint.writer import write_model
from jvlm_mlx.demo.phrases import COLORS
from jvlm_mlx.errors import ConversionError
from jvlm_mlx.files import atomic_folder
from jvlm_mlx.model import Model
from jvlm_mlx.model.windows import window_patches
from jvlm_mlx.process_group import ProcessGroup
from jvlm_mlx.training.optimizer import flat

from .architecture import PATCH_SIZE, POOLING_SIZE, TILE_SIZE
from .maker_command import positive, run_command
from .synthetic_tiles import CELL, KINDS, SyntheticTile, make_synthetic_tile, patches_of

Report = Callable[[int, float], None]

_GRID = TILE_SIZE // PATCH_SIZE
_WINDOW = POOLING_SIZE[0] * POOLING_SIZE[1]
_PATCH_CELLS = (PATCH_SIZE // CELL) ** 2
_NOTHING_COUNTS = 0.2
"""Weight of empty places in the loss: most of a tile is empty, and that is learned quickly."""
_BATCH_SIZE = 64
_HIGHEST_RATE = 3e-3
_WARMUP_STEPS = 50
_REPORTED_STEPS = 25


class TileReader(nn.Module):
    """Tower and connector of a model, and layers that say what patches and windows show."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.vision_tower = model.vision_tower
        self.connector = model.connector
        self.of_patches = _PlaceClassifier(model.config.tower.feature_size, _PATCH_CELLS)
        self.of_windows = _PlaceClassifier(model.config.decoder.hidden_size, _PATCH_CELLS * _WINDOW)
        # (W, p) both
        self._patches, self._inside = window_patches((_GRID, _GRID), POOLING_SIZE)

    def loss(self, pixel_values: mx.array, shown: mx.array) -> mx.array:
        """Return the cross entropy of everything that is said.

        Args:
            pixel_values: (T, P, V).
            shown: (T, P, cells, 2) kinds and colors of the cells of a patch.
        """
        features = self.vision_tower(pixel_values)
        tiles = len(pixel_values)
        starts = np.arange(tiles)[:, None, None] * _GRID**2
        # (T, W, p) -> (T W, p)
        patches = mx.array((starts + self._patches).reshape(-1, _WINDOW))
        inside = mx.array(np.tile(self._inside, (tiles, 1)))
        windows = self.connector(features, mx.ones((tiles, _GRID**2)), patches, inside)
        # (T, P, cells, 2) -> (T P, cells, 2) -> (T W, p, cells, 2) -> (T W, p cells, 2)
        cells = mx.flatten(shown, 0, 1)
        in_windows = mx.where(inside[..., None, None], cells[patches], -1)
        return self.of_patches.loss(mx.flatten(features, 0, 1), cells) + self.of_windows.loss(
            windows, mx.flatten(in_windows, 1, 2)
        )


class _PlaceClassifier(nn.Module):
    """Says for each cell of a patch or window what it shows and in which color."""

    def __init__(self, width: int, cells: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.kinds = nn.Linear(width, cells * (1 + len(KINDS)))
        self.colors = nn.Linear(width, cells * (1 + len(COLORS)))

    def loss(self, x: mx.array, shown: mx.array) -> mx.array:
        """Return the cross entropy: x (N, width), shown (N, cells, 2), -1 where nobody asks."""
        x = self.norm(x)
        total = mx.array(0.0)
        for place, layer in enumerate((self.kinds, self.colors)):
            # (N, cells classes) -> (N, cells, classes)
            scores = mx.unflatten(layer(x), -1, (shown.shape[1], -1))
            targets = shown[..., place]
            weights = mx.where(targets > 0, 1.0, mx.where(targets == 0, _NOTHING_COUNTS, 0.0))
            errors = nn.losses.cross_entropy(scores, mx.maximum(targets, 0))
            total = total + (errors * weights).sum() / weights.sum()
        return total


def batch_of(examples: Sequence[SyntheticTile]) -> tuple[mx.array, mx.array]:
    """Return pixel values (T, P, V) of images, and what is shown (T, P, cells, 2)."""
    shown = np.stack([np.stack([one.kinds, one.colors], axis=-1) for one in examples])
    side = PATCH_SIZE // CELL
    # (T, 18, 18, 2) -> (T, rows, side, columns, side, 2) -> (T, P, cells, 2)
    shown = shown.reshape(len(examples), _GRID, side, _GRID, side, 2).swapaxes(2, 3)
    return mx.array(patches_of(examples)), mx.array(shown.reshape(len(examples), _GRID**2, -1, 2))


def pretrain(
    model: Model, steps: int, *, seed: int = 0, group: ProcessGroup, report: Report | None = None
) -> None:
    """Change tower and connector of a model in float32.

    Args:
        model: in which they learn.
        steps: batches of 64 images, each seen once.
        seed: of the layers that say what is seen.
        group: processes that share every batch.
        report: called after every step with the number of steps and the mean loss.
    """
    mx.random.seed(seed)
    sight = TileReader(model)
    sight.train()
    differentiate = nn.value_and_grad(sight, sight.loss)
    optimizer = AdamW(learning_rate=0.0, betas=[0.9, 0.98], weight_decay=0.01, bias_correction=True)
    places = range(group.rank, _BATCH_SIZE, group.count)
    for step in range(steps):
        optimizer.learning_rate = learning_rate(step, steps)
        examples = [make_synthetic_tile(Random(f"m{step}-{place}")) for place in places]
        loss, tree = differentiate(*batch_of(examples))
        loss, gradients = nn.average_gradients([loss, tree])
        gradients, _ = clip_grad_norm(gradients, 1.0)
        optimizer.update(sight, gradients)
        mx.eval(sight.parameters(), optimizer.state, loss)
        if report is not None:
            report(step + 1, as_float(loss))
    model.eval()


def learning_rate(step: int, steps: int) -> float:
    """Return the rate of a step: soon at its highest, then down along a cosine."""
    falling = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps))
    return _HIGHEST_RATE * min(1.0, (step + 1) / _WARMUP_STEPS) * falling


def write_pretrained(
    source: Path, folder: Path, steps: int, *, show_progress: bool = False
) -> Path:
    """Write a checkpoint with pretrained tower and connector; the decoder is the source's.

    Args:
        source: folder of an initialized demo.
        folder: appears when everything is in it.
        steps: updates of the weights.
        show_progress: whether to show a bar on standard error.

    Raises:
        CheckpointError: the source is none, or cannot be read.
        ConversionError: the folder exists already.
    """
    check_target(folder, force=False)
    group = ProcessGroup()
    model, _ = load(source, dtype="float32")
    recent: deque[float] = deque(maxlen=_REPORTED_STEPS)
    with tqdm(total=steps, unit="step", disable=not show_progress or group.rank > 0) as bar:

        def report(step: int, loss: float) -> None:
            recent.append(loss)
            bar.update()
            if step % _REPORTED_STEPS == 0:
                bar.set_postfix(loss=f"{statistics.mean(recent):.3f}")

        pretrain(model, steps, group=group, report=report)
    if group.is_first:
        with atomic_folder(folder, ConversionError) as work:
            how = f"Tower and connector learned to see in {steps} steps."
            write_model(source, work, model.config, flat(model.parameters()), how)
    return folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument("source", type=Path, metavar="UNTRAINED", help="folder to begin with")
    parser.add_argument("output", type=Path, metavar="OUT", help="folder to write; must be new")
    parser.add_argument("--steps", type=positive, default=1000, help="batches of 64 images")


def run(arguments: argparse.Namespace) -> int:
    """Teach, write the checkpoint, and return the exit code."""
    write_pretrained(
        arguments.source, arguments.output, arguments.steps, show_progress=sys.stderr.isatty()
    )
    return 0


if __name__ == "__main__":
    sys.exit(
        run_command("python -m benchmarks.demo_model.pretraining", __doc__, add_arguments, run)
    )
