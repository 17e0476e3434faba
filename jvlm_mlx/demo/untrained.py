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
from mlx.utils import tree_flatten

from ..convert.folder import check_target, replaced_folder
from ..model import Model
from ..settings.model import ModelSettings
from ..settings.reader import SettingsReader
from ..training.checkpoints import write_weights
from .architecture import FEATURE_LAYERS, POOLING_SIZE, demo_config, demo_pictures
from .command import run_command
from .tasks import TASKS, examples
from .vocabulary import END_OF_TEXT, train_tokenizer, write_tokenizer

_SENTENCES_FROM = 8000
"""Examples whose words the tokenizer learns: enough that each word there is occurs."""
_TEXT_SEED = 2**31


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

    Matrices keep the scale of what goes through them; what is added to the residual stream is
    smaller the more layers add to it.
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
    mx.eval(weights)
    return weights


def _deviation(path: str, shape: tuple[int, ...], num_layers: int) -> float:
    if path.endswith(".bias") or path == "connector.pad_embed":
        return 0.0
    if "embedding" in path and not path.startswith("vision_tower.patch_embedding"):
        return 0.1
    deviation = shape[-1] ** -0.5
    if path.endswith(("out.weight", "down.weight")):
        return deviation / math.sqrt(2 * num_layers)
    return deviation / 2 if path.startswith("lm_head") else deviation


def _sentences() -> Iterator[str]:
    """Yield everything that is said in conversations, with the space that stands before it."""
    for example in examples(_TEXT_SEED, _SENTENCES_FROM, TASKS):
        yield f" User: {example.caption}"
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
