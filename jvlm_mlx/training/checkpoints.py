"""What a run writes: checkpoints that load like any other, and what it takes to go on from one."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoint.adapters import CONFIG_NAME, WEIGHTS_NAME, AdapterConfig
from ..checkpoint.saving import CONFIG
from ..errors import TrainingError
from .optimizer import Arrays

RUN_FOLDER = "training"
"""Folder of the output that holds checkpoints, recipe and metrics."""
_STEP_NAME = re.compile(r"step-(\d{8})")
_WRITING = ".writing"


def write_adapter(folder: Path, config: AdapterConfig, arrays: Arrays, num_layers: int) -> None:
    """Write adapters as mlx-lm does.

    Args:
        folder: an empty one.
        config: of the adapters.
        arrays: of the adapters, by path in the model.
        num_layers: of the decoder, for mlx-lm.

    Raises:
        OSError: the disk is full.
    """
    try:
        mx.save_safetensors(str(folder / WEIGHTS_NAME), arrays, {"format": "mlx"})
    except RuntimeError as error:
        raise OSError(str(error)) from error
    config.write(folder, num_layers=num_layers)


@contextmanager
def appearing_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder that takes the target's name when all went well, and not before.

    Raises:
        TrainingError: it cannot be written.
    """
    work = target.with_name(f"{target.name}{_WRITING}")
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        yield work
        shutil.rmtree(target, ignore_errors=True)
        work.rename(target)
    except OSError as error:
        raise TrainingError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def put_beside(work: Path, output: Path) -> None:
    """Move finished files into the output folder, the one that makes it whole last."""
    for file in sorted(work.iterdir(), key=lambda file: file.name in (CONFIG, CONFIG_NAME)):
        file.replace(output / file.name)
    work.rmdir()


def step_folder(output: Path, step: int) -> Path:
    """Return where the checkpoint after so many steps stands."""
    return output / RUN_FOLDER / f"step-{step:08}"


def saved_steps(output: Path) -> list[int]:
    """Return after how many steps there are complete checkpoints, in ascending order."""
    folder = output / RUN_FOLDER
    if not folder.is_dir():
        return []
    matches = (_STEP_NAME.fullmatch(entry.name) for entry in folder.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def remove_old(output: Path, keep: int) -> None:
    """Remove all but the newest checkpoints."""
    for step in saved_steps(output)[:-keep]:
        with suppress(OSError):
            shutil.rmtree(step_folder(output, step))


def write_json(file: Path, value: Any) -> None:
    """Write a file as a whole or not at all."""
    work = file.with_name(file.name + _WRITING)
    work.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    work.replace(file)
