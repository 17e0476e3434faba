"""The folder of a run: its lock and record, and checkpoints that load like any other.

OUTPUT/training/ has the record, the metrics and a folder for each checkpoint: weights (or
adapters) as they are loaded anywhere, and the optimizer's state. OUTPUT itself gets the result.
"""

import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoint.adapters import CONFIG_NAME, WEIGHTS_NAME, AdapterConfig, base_digest
from ..checkpoint.hub import DEMO, is_repository, origin
from ..checkpoint.saving import CONFIG
from ..checkpoint.writer import write_model
from ..config.json_file import read_json
from ..errors import RequestError, TrainingError
from ..files import atomic_file, atomic_folder, output_lock, reason, remove_folder
from ..temporary_names import remove_all_abandoned
from .reports import METRICS_NAME
from .step import Trainer

logger = logging.getLogger(__name__)

RUN_FOLDER = "training"
RECORD_NAME = "training_config.json"
STATE_NAME = "training_state.safetensors"
_RESULT = "result"
_STEP_NAME = re.compile(r"step-(\d{8})")


@contextmanager
def run_lock(output: Path) -> Iterator[None]:
    """Keep other runs out of the output folder, and remove what a killed one left half-written.

    Raises:
        TrainingError: another run writes to it, or it cannot be written to.
    """
    missing = [parent for parent in output.absolute().parents if not parent.exists()]
    try:
        for parent in reversed(missing):
            parent.mkdir(exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{output} cannot be written: {reason(error)}") from None
    try:
        with output_lock(output, TrainingError):
            shutil.rmtree(output / RUN_FOLDER / _RESULT, ignore_errors=True)
            with suppress(OSError):  # whoever writes there says what is wrong
                remove_all_abandoned(output / RUN_FOLDER)
            yield
    finally:
        for parent in missing:
            with suppress(OSError):  # it is not empty: the run has written something
                parent.rmdir()


def refuse_existing(output: Path) -> None:
    """Refuse an output folder that is not empty.

    What a run left that ended before its first checkpoint is nothing that could be lost.

    Raises:
        RequestError: with what to do about it.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    advice = "give another path"
    if saved_steps(output):
        advice = "give another path, or --resume to continue it"
    elif output.is_dir() and [entry.name for entry in output.iterdir()] == [RUN_FOLDER]:
        names = (entry.name for entry in (output / RUN_FOLDER).iterdir())
        if all(name in (RECORD_NAME, METRICS_NAME) or name.startswith(".") for name in names):
            return
    raise RequestError(f"{output} exists already; {advice}")


def read_record(output: Path) -> dict[str, Any]:
    """Return the options of the run in an output folder.

    Raises:
        RequestError: there is none.
    """
    file = output / RUN_FOLDER / RECORD_NAME
    if not file.is_file():
        raise RequestError(f"{output} has no training run to resume; leave out --resume")
    record = read_json(file, RequestError)
    if not isinstance(record, dict):
        raise RequestError(f"{file} is not the record of a run")
    return record


def write_record(output: Path, values: Mapping[str, Any]) -> None:
    """Write down the options of a run.

    Raises:
        TrainingError: the folder cannot be written.
    """
    folder = output / RUN_FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{output} cannot be written: {reason(error)}") from error
    with atomic_file(folder / RECORD_NAME, TrainingError) as work:
        text = json.dumps(values, indent=2, ensure_ascii=False)
        work.write_text(text + "\n", encoding="utf-8")


def is_finished(output: Path) -> bool:
    """Return whether the result is written."""
    return any((output / name).is_file() for name in (CONFIG, CONFIG_NAME))


def step_folder(output: Path, step: int) -> Path:
    """Return the folder of the checkpoint after so many iterations."""
    return output / RUN_FOLDER / f"step-{step:08}"


def saved_steps(output: Path) -> list[int]:
    """Return after how many iterations there are complete checkpoints, in ascending order."""
    folder = output / RUN_FOLDER
    if not folder.is_dir():
        return []
    matches = (_STEP_NAME.fullmatch(entry.name) for entry in folder.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def save_checkpoint(
    trainer: Trainer,
    output: Path,
    source: Path,
    adapter: AdapterConfig | None,
    step: int,
    digest: str,
) -> Path:
    """Write a checkpoint to resume from after `step` iterations, then remove old ones; return its
    folder. `source` is the folder of the checkpoint that training began with.

    Raises:
        TrainingError: it cannot be written.
    """
    target = step_folder(output, step)
    with atomic_folder(target, TrainingError, replace=True) as work:
        _write_weights(trainer, source, work, adapter, mx.float32)
        metadata = {"step": str(step), "data": digest}
        _save(work / STATE_NAME, trainer.optimizer.arrays(), metadata)
    _remove_old(trainer, output)
    return target


def _remove_old(trainer: Trainer, output: Path) -> None:
    """Remove checkpoints that newer ones replace, which are on the disk by now."""
    for old in saved_steps(output)[: -trainer.config.keep]:
        folder = step_folder(output, old)
        try:
            remove_folder(folder)
        except OSError as error:
            logger.warning("%s is not needed, but cannot be removed: %s", folder, reason(error))


def load_state(output: Path, trainer: Trainer, step: int, digest: str) -> None:
    """Load the state of a checkpoint whose weights the trainer's model has already.

    Raises:
        TrainingError: the state is missing, damaged, or that of another run or of other data.
    """
    folder = step_folder(output, step)
    file = folder / STATE_NAME
    try:
        loaded: Any = mx.load(str(file), return_metadata=True)
        arrays, metadata = loaded
        if metadata.get("step") != str(step):
            raise ValueError(f"it is of iteration {metadata.get('step')}")
        if metadata.get("data") != digest:
            raise TrainingError(
                "the training data has changed since this run began, so it cannot resume as it"
                " would have; restore the data, or begin a new run in another folder"
            )
        trainer.optimizer.load(arrays)
        mx.eval(trainer.optimizer.state)
    except KeyError as error:
        raise TrainingError(
            f"{file} has no {error.args[0]}: what is trained has changed; remove {folder} to"
            " resume from an earlier checkpoint"
        ) from None
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"{file} cannot be used ({reason(error)}); remove {folder} to resume from an earlier"
            " checkpoint"
        ) from None


def write_result(
    trainer: Trainer, output: Path, source: Path, adapter: AdapterConfig | None, dtype: mx.Dtype
) -> None:
    """Write the result into the output folder, in place of an earlier one.

    Raises:
        TrainingError: it cannot be written.
    """
    _remove_old(trainer, output)  # again: a run may have been killed before it was done
    staged = output / RUN_FOLDER / _RESULT
    with atomic_folder(staged, TrainingError, replace=True) as work:
        _write_weights(trainer, source, work, adapter, dtype)
    last = (CONFIG, CONFIG_NAME)
    try:
        # Without this file the folder is no checkpoint, so it goes first and comes last.
        for name in last:
            (output / name).unlink(missing_ok=True)
        for file in sorted(staged.iterdir(), key=lambda file: file.name in last):
            file.replace(output / file.name)
        staged.rmdir()
    except OSError as error:
        shutil.rmtree(staged, ignore_errors=True)  # it is made again from the last checkpoint
        raise TrainingError(f"{output} cannot be written: {reason(error)}") from error


def _write_weights(
    trainer: Trainer, source: Path, folder: Path, adapter: AdapterConfig | None, dtype: mx.Dtype
) -> None:
    """Write all weights in a dtype, or the adapters, which stay float32."""
    if adapter is None:
        arrays = trainer.all_parameters()
        arrays = {path: array.astype(dtype) for path, array in arrays.items()}
        write_model(source, folder, trainer.model.config, arrays, "trained further")
        return
    _save(folder / WEIGHTS_NAME, trainer.parameters, {"format": "mlx"})
    name, revision = origin(source)
    base = name if name == DEMO or is_repository(name) else str(source.absolute())
    # `num_layers` is for mlx-lm, the base model for whoever finds the adapter.
    adapter.write(
        folder,
        model=base,
        revision=revision,
        base_digest=base_digest(trainer.model),
        num_layers=len(trainer.model.layers),
    )


def _save(file: Path, arrays: dict[str, mx.array], metadata: dict[str, str]) -> None:
    try:
        mx.save_safetensors(str(file), arrays, metadata)
    except RuntimeError as error:
        raise OSError(str(error)) from error
