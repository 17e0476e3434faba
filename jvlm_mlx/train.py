"""Train a model, or adapters for one, on conversations about images.

The result is written into the output folder when all iterations are done. Ctrl-C finishes the
iteration and writes a checkpoint that --resume continues from.
"""

import argparse
import math
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from .checkpoint.hub import DEFAULT_REPOSITORY, DEMO, locate_checkpoint
from .checkpoint.loader import load, load_processor, read_config
from .cli.charts import write_chart
from .cli.formatting import new_figure
from .cli.main import EXIT_INTERRUPTED, EXIT_OK
from .cli.progress_bars import TrainingBars
from .cli.training_options import add_options, option_values
from .config.json_file import quoted
from .errors import DataError, JvlmError, RequestError, TrainingError
from .files import local_path
from .model import Model
from .process_group import ProcessGroup
from .processing.image_formats import silence_libtiff
from .progress import Progress, no_progress
from .training.checkpoints import (
    RUN_FOLDER,
    is_finished,
    read_record,
    refuse_existing,
    run_lock,
    saved_steps,
    step_folder,
    write_record,
)
from .training.data_loader import training_loader, validation_loader
from .training.dataset import TrainingData, read_examples
from .training.examples import TRAIN_NAME, VALIDATION_NAME, read_sources
from .training.model_setup import prepare_model
from .training.reports import METRICS_NAME, StepReport
from .training.step import Trainer
from .training.trainer import TrainingResult, run_training
from .training.training_config import DEFAULT_ITERS, MAX_ITERS, OPTIONS, TrainingConfig

CHART_NAME = "loss.png"
_FREE = (
    "validation", "iters", "epochs", "grad_checkpoint", "steps_per_report", "steps_per_eval",
    "save_every", "keep", "image_cache",
)  # fmt: skip
"""What may differ when a run resumes: earlier iterations do not depend on it."""


def train(
    model: str | Path | Model | None = None,
    *,
    data: str | Path | None = None,
    output: str | Path,
    config: TrainingConfig | None = None,
    validation: str | Path | None = None,
    revision: str | None = None,
    source: str | Path | None = None,
    resume_adapter_file: str | Path | None = None,
    resume: bool = False,
    show_progress: bool | None = None,
    progress: Progress = no_progress,
    on_report: Callable[[StepReport], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    **overrides: Any,
) -> TrainingResult:
    """Train a model, or adapters for one, and write the result into a folder.

    Args:
        model: folder, repository, or a loaded model, which is changed; None for the release.
        data: `.jsonl` file of examples, mixture (`.json`), or a folder with `train.jsonl`.
        output: folder of the result.
        config: how to train; None for the defaults.
        validation: as `data`, for the validation loss. A folder of data may have `valid.jsonl`.
        revision: branch, tag or commit of a repository.
        source: folder of the checkpoint that a loaded model is of.
        resume_adapter_file: adapters to begin with: their folder, or the file in it. Rank, scale
            and layers are theirs.
        resume: continue the run in `output` from its newest checkpoint; model, data and options
            are those it began with, and a finished run is lengthened with more `iters`.
        show_progress: as for `load`.
        progress: called while data is checked and weights are read, and after every iteration.
        on_report: called every `steps_per_report` iterations and after every validation.
        should_stop: asked after every iteration; True writes a checkpoint and ends the run.
        **overrides: options of `TrainingConfig`, before those of `config`.

    Raises:
        JvlmError: with one line that says what is wrong with options, data, model or output.
    """
    given = (config.non_defaults() if config else {}) | overrides
    loaded = model if isinstance(model, Model) else None
    if loaded is not None and (source is None or resume):
        raise RequestError(
            "a loaded model needs source, the folder of its checkpoint, and cannot resume a run"
        )
    paths = {
        "model": model if loaded is None else source,
        "data": data,
        "validation": validation,
        "revision": revision,
        "resume_adapter_file": resume_adapter_file,
    }
    given |= {name: str(value) for name, value in paths.items() if value is not None}
    folder = local_path(output, RequestError)
    group = ProcessGroup()
    with ExitStack() as stack:
        with _together(group):
            if group.is_first:
                stack.enter_context(run_lock(folder))
            values = _resumed(folder, given) if resume else given
            if not resume and group.is_first:
                refuse_existing(folder)
        options = TrainingConfig().changed({n: v for n, v in values.items() if n not in paths})
        checkpoint = locate_checkpoint(
            values.get("model") or DEFAULT_REPOSITORY,
            revision=values.get("revision"),
            show_progress=show_progress,
        )
        # All that can be wrong with options and data is said before weights are read.
        examples, validated = _read_data(checkpoint, values, options, progress)
        loader = training_loader(examples, options, group.rank, group.count)
        iters = _iters(options, loader.num_batches)
        newest = step_folder(folder, _newest(folder, iters)) if resume else None
        begins_with = newest or _adapter_folder(values.get("resume_adapter_file"), options)
        if loaded is None and options.is_full:
            loaded, _ = load(newest or checkpoint, dtype="float32", progress=progress)
        elif loaded is None:
            loaded, _ = load(checkpoint, dtype=options.dtype, progress=progress)
        adapter = prepare_model(loaded, options, None if options.is_full else begins_with)
        with _together(group):
            if group.is_first:
                write_record(folder, _record(values, options))
        return run_training(
            Trainer(loaded, options, iters, group),
            loader,
            folder,
            checkpoint,
            iters=iters,
            adapter=adapter,
            validation=validation_loader(validated, options) if validated else None,
            group=group,
            resume=resume,
            should_stop=should_stop,
            progress=progress,
            on_report=on_report,
        )


@contextmanager
def _together(group: ProcessGroup) -> Iterator[None]:
    """Raise what only one process finds in all of them, so that none waits for the others."""
    error: JvlmError | None = None
    try:
        yield
    except JvlmError as found:
        error = found
    if group.sum(error is not None):
        raise error or TrainingError("another process cannot begin, so this one does not either")


def _read_data(
    checkpoint: Path, values: Mapping[str, Any], config: TrainingConfig, progress: Progress
) -> tuple[TrainingData, TrainingData | None]:
    """Read examples to learn from and, if there are any, to validate with."""
    if values.get("data") is None:
        raise RequestError("there is nothing to learn from: give a file or folder with --data")
    data, validation = local_path(values["data"], DataError), values.get("validation")
    if validation is None and (data / VALIDATION_NAME).is_file():
        validation = data
    checkpoint_config = read_config(checkpoint)
    processor = load_processor(checkpoint, checkpoint_config)

    def read(path: str | Path, name: str) -> TrainingData:
        return read_examples(
            read_sources(path, name),
            processor,
            max_seq_length=config.max_seq_length or checkpoint_config.model.decoder.context_size,
            image_options=config.image_options,
            progress=progress,
        )

    examples = read(data, TRAIN_NAME)
    return examples, None if validation is None else read(validation, VALIDATION_NAME)


def _iters(config: TrainingConfig, batches_per_epoch: int) -> int:
    """Return how many iterations a run has."""
    if config.epochs is None:
        return config.iters or DEFAULT_ITERS
    exactly = config.epochs * batches_per_epoch / config.grad_accumulation_steps
    if exactly > MAX_ITERS:
        raise RequestError(f"epochs is {config.epochs}, which is too many")
    # All batches are learned, so a part of an iteration is a whole one. Rounded first, as a
    # product of floats may be a little too high.
    return max(1, math.ceil(round(exactly, 6)))


def _adapter_folder(path: str | None, config: TrainingConfig) -> Path | None:
    """Return the folder of the adapter to begin with, however it was given."""
    if path is None:
        return None
    if config.is_full:
        raise RequestError("resume_adapter_file is for fine_tune_type lora or dora")
    found = local_path(path, RequestError)
    return found if found.is_dir() else found.parent


def _newest(output: Path, iters: int) -> int:
    """Return how many iterations the newest checkpoint has, if there are any left to do."""
    steps = saved_steps(output)
    if not steps:
        raise TrainingError(
            f"{output} has no checkpoint to resume from; leave out --resume to begin again"
        )
    if steps[-1] > iters or (steps[-1] == iters and is_finished(output)):
        raise RequestError(
            f"the run in {output} has done {steps[-1]} iterations; give more --iters to lengthen"
            " it, or use its result as it is"
        )
    return steps[-1]


def _resumed(output: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options a run began with, and of those given what may differ.

    Raises:
        RequestError: there is no run, or an option differs that may not.
    """
    recorded = read_record(output)
    for name, value in given.items():
        default = OPTIONS[name].default if name in OPTIONS else None
        before = recorded.get(name, default)
        if name not in _FREE and _resolved(name, value) != _resolved(name, before):
            raise RequestError(
                f"{name} was {quoted(before)} when this run began, and cannot be {quoted(value)}"
                " now; leave it out, or begin a new run in another folder"
            )
    free = {name: value for name, value in given.items() if name in _FREE}
    if free.keys() & {"iters", "epochs"}:
        recorded = {n: value for n, value in recorded.items() if n not in ("iters", "epochs")}
    return recorded | free


def _path(name: str, value: Any) -> Path | None:
    """Return the path that the value of an option is; None if it is none."""
    if value is None or name not in ("model", "data", "validation", "resume_adapter_file"):
        return None
    path = local_path(value, RequestError)
    # A model may be a repository, too.
    is_path = name != "model" or (value != DEMO and path.is_dir())
    return path if is_path else None


def _resolved(name: str, value: Any) -> Any:
    """Return the same for all ways to write a value."""
    path = _path(name, value)
    if path is not None:
        return path.resolve()
    return list(value) if isinstance(value, tuple) else value


def _record(values: Mapping[str, Any], config: TrainingConfig) -> dict[str, Any]:
    """Return what a run is resumed with: what is not as it is by default."""
    record = {name: value for name, value in values.items() if name not in OPTIONS}
    for name, value in record.items():
        path = _path(name, value)
        if path is not None:
            # Not resolved: images are looked for beside a link, and not beside its target.
            record[name] = str(path.absolute())
    return record | config.non_defaults()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this subcommand."""
    add_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train, and return the exit code."""
    silence_libtiff()
    values = option_values(arguments)
    draws_chart = values.pop("chart", False)
    if draws_chart:
        new_figure("chart")  # not found missing at the end of a long run
    output = values.pop("output", None)
    if output is None:
        raise RequestError("there is no place for the result: give a folder with --output")
    is_first = ProcessGroup().is_first
    with TrainingBars(arguments.quiet or not is_first) as bars, interrupted_once() as should_stop:
        result = train(
            output=output,
            resume=arguments.resume,
            progress=bars.show,
            on_report=bars.report,
            should_stop=should_stop,
            show_progress=None if bars.shown else False,
            **values,
        )
    if not is_first:
        return EXIT_OK if result.finished else EXIT_INTERRUPTED
    if result.finished:
        print(f"written: {result.path}")
    else:
        print(
            f"stopped after iteration {result.step}; to resume:"
            f" python -m jvlm_mlx.train --output {shlex.quote(str(output))} --resume",
            file=sys.stderr,
        )
    # Comes last: what was said holds, even if a chart cannot be drawn.
    if draws_chart:
        folder = local_path(output, RequestError) / RUN_FOLDER
        write_chart({"this run": folder / METRICS_NAME}, folder / CHART_NAME)
    return EXIT_OK if result.finished else EXIT_INTERRUPTED


@contextmanager
def interrupted_once() -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C only be noted; the second one ends the program as usual."""
    stops = False

    def note(*_: object) -> None:
        nonlocal stops
        stops = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: stops
    finally:
        signal.signal(signal.SIGINT, before)


if __name__ == "__main__":
    # The module that the package has imported does the work, not this second copy of it.
    from .cli.main import run_subcommand

    sys.exit(run_subcommand("train"))
