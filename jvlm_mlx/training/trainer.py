"""The training run: iteration after iteration, with metrics, validation and checkpoints."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from ..checkpoint.adapters import AdapterConfig
from ..config.dtypes import FLOAT_DTYPES
from ..errors import TrainingError
from ..process_group import ProcessGroup
from ..progress import Progress, ProgressEvent, no_progress
from .checkpoints import (
    RUN_FOLDER,
    load_state,
    save_checkpoint,
    saved_steps,
    step_folder,
    write_result,
)
from .data_loader import DataLoader
from .loss import prepare
from .reports import METRICS_NAME, MetricsFile, StepReport
from .step import Trainer


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended."""

    step: int
    """Iterations done, in earlier runs too."""
    finished: bool
    """Whether the result is written; else a checkpoint to resume from is."""
    path: Path
    """Folder of the result, or of that checkpoint."""
    last: StepReport | None
    """The last iteration of this run, if it did any."""


def run_training(
    trainer: Trainer,
    loader: DataLoader,
    output: Path,
    source: Path,
    *,
    iters: int,
    adapter: AdapterConfig | None,
    validation: DataLoader | None = None,
    group: ProcessGroup | None = None,
    resume: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    progress: Progress = no_progress,
    on_report: Callable[[StepReport], None] = lambda _: None,
) -> TrainingResult:
    """Train a model, from the start or from the newest checkpoint in the output folder.

    The trainer has the weights of that checkpoint already; `source` is the folder of the one that
    training began with. After every iteration, `progress` is called and `should_stop` asked, whose
    True writes a checkpoint and ends the run.

    Raises:
        TrainingError: the loss is not finite any more, or nothing can be written.
        DataError: an image has become unreadable.
    """
    group = group or ProcessGroup()
    config, data = trainer.config, loader.data
    first = 0
    if resume:
        first = saved_steps(output)[-1]
        load_state(output, trainer, first, data.digest)
    metrics = None
    if group.is_first:
        metrics = MetricsFile(output / RUN_FOLDER / METRICS_NAME, first)
    report: StepReport | None = None
    count = config.grad_accumulation_steps
    progress(ProgressEvent("training", first, iters, "iteration"))
    with loader.prefetch(first * count, iters * count) as batches:
        for step in range(first, iters):
            began = time.perf_counter()
            parts = [next(batches) for _ in range(count)]
            with _naming_newest(output):
                result = trainer.step([prepare(trainer.model, part) for part in parts], step)
            seconds = time.perf_counter() - began
            done, is_last = step + 1, step + 1 == iters
            due = is_last or (config.steps_per_eval and done % config.steps_per_eval == 0)
            validation_loss = None
            if validation is not None and config.steps_per_eval and due and group.is_first:
                validation_loss = mean_loss(trainer, validation)
            images = sum(loader.num_images(step * count + number) for number in range(count))
            report = StepReport(
                step=done,
                iters=iters,
                loss=result.loss,
                validation_loss=validation_loss,
                gradient_norm=result.gradient_norm,
                learning_rates=result.learning_rates,
                target_tokens=int(group.sum(sum(part.num_targets for part in parts))),
                tokens_per_second=group.sum(sum(part.num_tokens for part in parts)) / seconds,
                images_per_second=images / seconds,
                seconds=seconds,
                peak_memory=mx.get_peak_memory(),
            )
            if validation_loss is not None or is_last or not done % config.steps_per_report:
                if metrics:
                    metrics.write(report.metrics())
                on_report(report)
            progress(ProgressEvent("training", done, iters, "iteration"))
            # One process's wish is everybody's.
            stops = not is_last and group.sum(should_stop()) > 0
            path = step_folder(output, done)
            if stops or (config.save_every and (is_last or done % config.save_every == 0)):
                with _naming_newest(output):
                    trainer.check_weights(done)
                if group.is_first:
                    save_checkpoint(trainer, output, source, adapter, done, data.digest)
            if stops:
                return TrainingResult(done, False, path, report)
    with _naming_newest(output):
        trainer.check_weights(iters)
    if group.is_first:
        write_result(trainer, output, source, adapter, FLOAT_DTYPES[config.dtype].mlx)
    return TrainingResult(iters, True, output, report)


def mean_loss(trainer: Trainer, validation: DataLoader) -> float:
    """Return the mean loss over all target tokens of all batches."""
    with validation.prefetch(0, validation.num_batches) as batches:
        return trainer.loss(prepare(trainer.model, batch) for batch in batches)


@contextmanager
def _naming_newest(output: Path) -> Iterator[None]:
    """Add to an error where the newest checkpoint is, if there is one."""
    try:
        yield
    except TrainingError as error:
        steps = saved_steps(output)
        if not steps:
            raise
        raise TrainingError(
            f"{error}; the newest checkpoint is {step_folder(output, steps[-1])}"
        ) from error
