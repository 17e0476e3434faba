"""The demo before its training: config, tokenizer and random weights in one folder.

    python -m benchmarks.demo_model.initialization OUT

The same seed gives the same bytes.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jvlm_mlx.checkpoint.saving import check_target
from jvlm_mlx.checkpoint.writer import write_weights
from jvlm_mlx.config.config_reader import ConfigReader
from jvlm_mlx.config.model_config import ModelConfig
from jvlm_mlx.demo.phrases import PHRASES
from jvlm_mlx.demo.tasks import TASKS, examples
from jvlm_mlx.errors import ConversionError
from jvlm_mlx.files import atomic_folder
from jvlm_mlx.model import Model

from .architecture import FEATURE_LAYERS, POOLING_SIZE, demo_config, demo_images
from .initial_weights import random_weights
from .maker_command import run_command
from .vocabulary import END_OF_TEXT, train_tokenizer, write_tokenizer

_SENTENCES_FROM = 8000
"""Examples whose words the tokenizer learns: enough that each word there is occurs."""
_TEXT_SEED = 2**31


def write_initialized(
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
    with atomic_folder(folder, ConversionError) as work:
        ids = write_tokenizer(work, train_tokenizer(_sentences()))
        config_json = demo_config(
            ids[END_OF_TEXT], pooling_size=pooling_size, feature_layers=feature_layers
        )
        _write_json(work / "config.json", config_json)
        _write_json(work / "preprocessor_config.json", demo_images(ids, pooling_size=pooling_size))
        stops = [ids[END_OF_TEXT], ids["<|im_end|>"]]
        _write_json(work / "generation_config.json", {"eos_token_id": stops})
        config = ModelConfig.read(ConfigReader(config_json, "config.json"))
        write_weights(work, random_weights(Model(config), seed))
    return folder


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
    write_initialized(arguments.output, arguments.seed)
    return 0


if __name__ == "__main__":
    sys.exit(
        run_command("python -m benchmarks.demo_model.initialization", __doc__, add_arguments, run)
    )
