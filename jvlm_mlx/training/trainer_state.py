"""What a checkpoint holds beside the weights, so that a run can go on as if never interrupted."""

from pathlib import Path
from typing import Any

import mlx.core as mx

from ..errors import TrainingError
from .step import Trainer

STATE_NAME = "training_state.safetensors"


def save_state(folder: Path, trainer: Trainer, step: int, digest: str) -> None:
    """Write the optimizer's state, the number of steps done and which data they were done with.

    Raises:
        OSError: the disk is full.
    """
    arrays = trainer.optimizer.arrays()
    try:
        mx.save_safetensors(str(folder / STATE_NAME), arrays, {"step": str(step), "data": digest})
    except RuntimeError as error:
        raise OSError(str(error)) from error


def load_state(folder: Path, trainer: Trainer, step: int, digest: str) -> None:
    """Take up the state of a checkpoint whose weights the trainer's model has already.

    Raises:
        TrainingError: the state is missing, damaged, or that of another run or of other data.
    """
    file = folder / STATE_NAME
    try:
        loaded: Any = mx.load(str(file), return_metadata=True)
        arrays, metadata = loaded
        if metadata.get("step") != str(step):
            raise ValueError(f"it is of step {metadata.get('step')}")
        if metadata.get("data") != digest:
            raise TrainingError(
                "the training data has changed since this run began, so it cannot go on as it"
                " would have; bring the data back, or begin a new run in another folder"
            )
        trainer.optimizer.load(arrays)
        mx.eval(trainer.optimizer.state)
    except KeyError as error:
        raise TrainingError(
            f"{file} has no {error.args[0]}: what is trained has changed; remove {folder} to go"
            " on from an earlier checkpoint"
        ) from None
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"{file} cannot be used ({error}); remove {folder} to go on from an earlier checkpoint"
        ) from None
