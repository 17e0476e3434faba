"""The demo before its training: settings, tokenizer and random weights in one folder.

    python -m jvlm_mlx.demo.untrained OUT

The same seed gives the same bytes.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from numpy.typing import NDArray

from ..convert.folder import check_target, replaced_folder
from ..model import Model
from ..settings.model import ModelSettings
from ..settings.reader import SettingsReader
from ..training.checkpoints import write_weights
from .architecture import FEATURE_LAYERS, POOLING_SIZE, demo_config, demo_pictures
from .command import run_command
from .phrases import PHRASES
from .tasks import TASKS, examples
from .vocabulary import END_OF_TEXT, train_tokenizer, write_tokenizer

_SENTENCES_FROM = 8000
"""Examples whose words the tokenizer learns: enough that each word there is occurs."""
_TEXT_SEED = 2**31
_WAVE_HEIGHT = 0.7


def write_untrained(
    folder: Path,
    seed: int,
    *,
    pooling_size: tuple[int, int] = POOLING_SIZE,
    feature_layers: tuple[int, ...] = FEATURE_LAYERS,
) -> Path:
    """Write a checkpoint that is ready to be trained from scratch.

    Args:
        folder: appears when everything is in it.
        seed: of the weights.
        pooling_size: rows and columns of patches that become one vector of the decoder.
        feature_layers: places in the list of the tower's layers and its final norm.

    Raises:
        ConversionError: the folder exists already.
    """
    check_target(folder, force=False)
    with replaced_folder(folder) as work:
        ids = write_tokenizer(work, train_tokenizer(_sentences()))
        config = demo_config(
            ids[END_OF_TEXT], pooling_size=pooling_size, feature_layers=feature_layers
        )
        _write_json(work / "config.json", config)
        _write_json(
            work / "preprocessor_config.json", demo_pictures(ids, pooling_size=pooling_size)
        )
        stops = [ids[END_OF_TEXT], ids["<|im_end|>"]]
        _write_json(work / "generation_config.json", {"eos_token_id": stops})
        settings = ModelSettings.read(SettingsReader(config, "config.json"))
        write_weights(work, random_weights(Model(settings), seed))
    return folder


def random_weights(model: Model, seed: int) -> dict[str, mx.array]:
    """Return weights to begin with, by path.

    The release began with a trained tower and a trained decoder. From random weights, pictures
    are only learned soon if four things hold from the first step, each of which was tried:
    white paper is zero, so that what is printed on it stands out; positions are waves, so that
    neighbours are alike; a patch attends first to what is like itself; and what the connector
    adds to a token is no smaller than the token.
    """
    weights = {}
    parameters: Any = tree_flatten(model.parameters())
    for number, (path, array) in enumerate(sorted(parameters)):
        key = mx.random.key(seed * 10_000 + number)
        weights[path] = _deviation(path, array.shape, len(model.layers)) * mx.random.normal(
            array.shape, key=key
        )
        if path.endswith("norm.weight"):
            weights[path] = mx.ones(array.shape)
    tower = model.settings.tower
    patch = "vision_tower.patch_embedding"
    # White is 1 in every value of a patch.
    weights[f"{patch}.bias"] = -mx.sum(weights[f"{patch}.weight"], axis=-1)
    weights["vision_tower.position_embedding"] = waves(tower.patch_grid, tower.hidden_size)
    for layer in range(tower.num_used_layers):
        path = f"vision_tower.layers.{layer}.attention.qkv.weight"
        queries, _, values = mx.split(weights[path], 3)
        weights[path] = mx.concatenate([queries, queries, values])
    mx.eval(weights)
    return weights


def waves(grid: tuple[int, int], size: int) -> mx.array:
    """Return position vectors, (P, size): sines and cosines of row and column."""
    # From half a wave over the grid to a wave over three patches.
    lengths = np.geomspace(4 * max(grid), 3, size // 4)

    def side(count: int) -> NDArray[np.float64]:
        angles = 2 * np.pi * np.arange(count)[:, None] / lengths
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)

    rows, columns = side(grid[0]), side(grid[1])
    # (R, 1, D / 2) and (1, C, D / 2) -> (R, C, D) -> (P, D)
    table = np.concatenate(
        [
            np.broadcast_to(rows[:, None], (*grid, size // 2)),
            np.broadcast_to(columns[None], (*grid, size // 2)),
        ],
        axis=-1,
    )
    return mx.array((table * _WAVE_HEIGHT).reshape(-1, size).astype(np.float32))


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


def _sentences() -> Iterator[str]:
    """Yield everything that is said in conversations, with the space that stands before it."""
    for example in examples(_TEXT_SEED, _SENTENCES_FROM, TASKS):
        yield f" User: {PHRASES[example.language].describe} Assistant: {example.caption}"
        for turn in example.turns:
            yield f" User: {turn.question} Assistant: {turn.answer}"


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument("output", type=Path, metavar="OUT", help="folder to write; must be new")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")


def run(arguments: argparse.Namespace) -> int:
    """Write the checkpoint, and return the exit code."""
    write_untrained(arguments.output, arguments.seed)
    return 0


if __name__ == "__main__":
    sys.exit(run_command("python -m jvlm_mlx.demo.untrained", __doc__, add_arguments, run))
