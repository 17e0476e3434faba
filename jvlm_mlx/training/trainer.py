"""The training run: step after step, with metrics, validation and checkpoints."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from ..checkpoint.adapters import AdapterConfig, adapted_layers
from ..checkpoint.writer import write_model
from ..config.dtypes import FLOAT_DTYPES
from ..errors import TrainingError
from ..model import Model
from .checkpoints import (
    RUN_FOLDER,
    appearing_folder,
    put_beside,
    remove_old,
    saved_steps,
    step_folder,
    write_adapter,
)
from .data_feed import AHEAD, Feed
from .loss import prepare
from .metrics import METRICS_NAME, MetricsFile
from .optimizer import flat
from .processes import Processes
from .step import Trainer
from .step_report import StepReport
from .trainer_state import load_state, save_state
from .training_config import TrainingConfig

logger = logging.getLogger(__name__)

Progress = Callable[[StepReport], None]
"""Called after every step."""


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended."""

    step: int
    """Updates done, in earlier runs too."""
    finished: bool
    """Whether the result is written; else a checkpoint to go on from is."""
    path: Path
    """Folder of the result, or of that checkpoint."""
    last: StepReport | None
    """The last step of this run, if it did any."""


def train(
    model: Model,
    feed: Feed,
    config: TrainingConfig,
    output: Path,
    source: Path,
    *,
    processes: Processes,
    validation: Feed | None,
    resume: bool,
    should_stop: Callable[[], bool],
    progress: Progress,
) -> TrainingResult:
    """Train a model, from the beginning or from the newest checkpoint in the output folder.

    Args:
        model: from `prepare_model`.
        feed: `config.accumulate` of its batches make up a step.
        config: of the run.
        output: folder of the result. Checkpoints and metrics are in its folder `training`.
        source: folder of the checkpoint that training began with.
        processes: that train together; the first one writes.
        validation: batches whose loss is measured, all of them each time; None for none.
        resume: whether the model holds the weights of the newest checkpoint in `output`.
        should_stop: asked after every step; True writes a checkpoint and ends the run.
        progress: told of every step.

    Raises:
        TrainingError: the loss or a weight is no number any more, or nothing can be written.
        RequestError: a batch holds what the model cannot learn.
    """
    trainer = Trainer(model, config, processes)
    first = 0
    if resume:
        first = saved_steps(output)[-1]
        load_state(step_folder(output, first), trainer, first, feed.data.digest)
    folder = output / RUN_FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        metrics = MetricsFile(folder / METRICS_NAME, first) if processes.is_first else None
    except OSError as error:
        raise TrainingError(f"{folder} cannot be written: {error.strerror}") from error
    report: StepReport | None = None
    count = config.accumulate
    with feed.batches.prefetch(first * count, config.steps * count, ahead=AHEAD) as batches:
        for step in range(first, config.steps):
            began = time.perf_counter()
            parts = [next(batches) for _ in range(count)]
            with _naming_what_is_left(output):
                result = trainer.step([prepare(model, part) for part in parts], step)
            seconds = time.perf_counter() - began
            done = step + 1
            is_last = done == config.steps
            every = config.validate_every
            due = every and (done % every == 0 or is_last)
            validates = validation is not None and due and processes.is_first
            images = sum(feed.num_images(step * count + number) for number in range(count))
            report = StepReport(
                step=done,
                loss=result.loss,
                validation_loss=validation_loss(trainer, validation)
                if validation is not None and validates
                else None,
                gradient_norm=result.gradient_norm,
                learning_rates=result.learning_rates,
                target_tokens=int(processes.sum(sum(part.num_targets for part in parts))),
                tokens_per_second=processes.sum(sum(part.num_tokens for part in parts)) / seconds,
                images_per_second=images / seconds,
                seconds=seconds,
                peak_memory=mx.get_peak_memory(),
            )
            if metrics and (validates or is_last or done % config.report_every == 0):
                metrics.write(report.line())
            progress(report)
            if is_last:
                break
            # One process's wish is everybody's.
            stops = processes.sum(should_stop()) > 0
            if stops or (config.save_every and done % config.save_every == 0):
                path = step_folder(output, done)
                with _naming_what_is_left(output):
                    trainer.check_weights(done)
                if processes.is_first:
                    _save(trainer, output, source, path, done, feed.data.digest)
            if stops:
                return TrainingResult(done, False, path, report)
    with _naming_what_is_left(output):
        trainer.check_weights(config.steps)
    if processes.is_first:
        _write_result(trainer, output, source)
    return TrainingResult(config.steps, True, output, report)


@contextmanager
def _naming_what_is_left(output: Path) -> Iterator[None]:
    """Add to an error where the newest checkpoint is, if there is one."""
    try:
        yield
    except TrainingError as error:
        steps = saved_steps(output)
        if not steps:
            raise
        raise TrainingError(
            f"{error}; what was learned before is in {step_folder(output, steps[-1])}"
        ) from error


def validation_loss(trainer: Trainer, validation: Feed) -> float:
    """Return the mean loss over all target tokens of all batches."""
    steps = validation.batches.steps_per_epoch
    with validation.batches.prefetch(0, steps, ahead=AHEAD) as batches:
        return trainer.loss(prepare(trainer.model, batch) for batch in batches)


def _save(
    trainer: Trainer, output: Path, source: Path, target: Path, step: int, digest: str
) -> None:
    """Write a checkpoint to go on from."""
    with appearing_folder(target) as work:
        _write_weights(trainer, source, work, None)
        save_state(work, trainer, step, digest)
    remove_old(output, trainer.config.keep)


def _write_result(trainer: Trainer, output: Path, source: Path) -> None:
    with appearing_folder(output / RUN_FOLDER / "result") as work:
        _write_weights(trainer, source, work, FLOAT_DTYPES[trainer.config.dtype].mlx)
    put_beside(output / RUN_FOLDER / "result", output)


def _write_weights(trainer: Trainer, source: Path, folder: Path, dtype: mx.Dtype | None) -> None:
    """Write all weights, or the adapters, in a dtype; None for float32, as they are trained."""
    adapter = trainer.config.adapter
    if adapter is not None:
        layers = tuple(adapted_layers(trainer.model))
        config = AdapterConfig(adapter.kind, adapter.rank, adapter.scale, adapter.dropout, layers)
        write_adapter(folder, config, trainer.parameters, len(trainer.model.layers))
        return
    arrays = flat(trainer.model.parameters()) | trainer.parameters
    if dtype is not None:
        arrays = {path: array.astype(dtype) for path, array in arrays.items()}
    write_model(source, folder, trainer.model.config, arrays, "trained further")
