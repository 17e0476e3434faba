"""Train a model, or adapters for one, on conversations about images.

The result is written into the output folder when all steps are done. Ctrl-C finishes the step
and writes a checkpoint that --resume goes on from.
"""

import argparse
import math
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .checkpoint.adapters import CONFIG_NAME
from .checkpoint.hub import DEMO, locate_checkpoint
from .checkpoint.loader import load, load_processor, read_config
from .checkpoint.saving import CONFIG
from .cli.formatting import new_figure
from .cli.loss_chart import write_chart
from .cli.main import EXIT_INTERRUPTED, EXIT_OK
from .cli.progress_bars import wants_progress
from .cli.training_options import (
    DEFAULTS,
    Values,
    add_options,
    given_options,
    read_recipe,
    training_config,
)
from .cli.training_progress import TrainingBars
from .errors import RequestError, TrainingError
from .files import local_path
from .training import (
    LoaderConfig,
    TrainingResult,
    prepare_model,
    train,
    training_feed,
    validation_feed,
)
from .training.checkpoints import RUN_FOLDER, saved_steps, step_folder, write_json
from .training.data_limits import DataLimits
from .training.metrics import METRICS_NAME
from .training.mixture import read_mixture
from .training.prepare_data import prepare_data
from .training.processes import Processes

RECIPE_NAME, CHART_NAME = "recipe.json", "loss.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this subcommand."""
    parser.add_argument(
        "--recipe", type=Path, metavar="FILE",
        help="JSON object with these options by name; the command line counts more",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true", help="go on from the newest checkpoint in the output"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train, and return the exit code."""
    given = given_options(arguments)
    recipe = read_recipe(arguments.recipe) if arguments.recipe else {}
    output = _output(given, recipe)
    processes = Processes()
    first = None
    if arguments.resume:
        recorded = _recorded(output)
        _refuse_changes(recorded, recipe | given)
        values = DEFAULTS | recorded | {n: v for n, v in (recipe | given).items() if n in _FREE}
        first = _newest(output)
    else:
        values = DEFAULTS | recipe | given
        if processes.is_first:
            _refuse_existing(output)
    if values["chart"]:
        new_figure("chart")  # not found missing at the end of a long run
    if values["data"] is None:
        raise RequestError("there is nothing to learn from: give a file with --data")
    with TrainingBars(wants_progress(arguments.quiet) and processes.is_first) as bars:
        result = _train(values, output, first, processes, bars)
    if processes.is_first and result.finished:
        print(f"written: {result.path}")
    elif processes.is_first:
        print(
            f"stopped after step {result.step}, to go on with:"
            f" python -m jvlm_mlx.train --output {shlex.quote(str(output))} --resume",
            file=sys.stderr,
        )
    # Comes last: what was said holds, even if a chart cannot be drawn.
    if processes.is_first and values["chart"]:
        folder = output / RUN_FOLDER
        write_chart(folder / METRICS_NAME, folder / CHART_NAME)
    return EXIT_OK if result.finished else EXIT_INTERRUPTED


_FREE = (
    "output", "gradient_checkpointing", "validation", "validate_every", "save_every",
    "keep", "report_every", "image_cache", "chart",
)  # fmt: skip
"""Options that may differ when a run goes on: the weights do not depend on them."""


def _output(given: Values, recipe: Values) -> Path:
    output = given.get("output", recipe.get("output"))
    if output is None:
        raise RequestError("there is no place for the result: give a folder with --output")
    return local_path(output, RequestError)


def _refuse_existing(output: Path) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    advice = "give another path"
    if saved_steps(output) and not _is_finished(output):
        advice = "give another path, or --resume to go on"
    elif output.is_dir() and [entry.name for entry in output.iterdir()] == [RUN_FOLDER]:
        # Of a run that ended before its first checkpoint.
        advice = "remove it, or give another path"
    raise RequestError(f"{output} exists already; {advice}")


def _is_finished(output: Path) -> bool:
    return any((output / name).is_file() for name in (CONFIG, CONFIG_NAME))


def _recorded(output: Path) -> Values:
    file = output / RUN_FOLDER / RECIPE_NAME
    if not file.is_file():
        raise RequestError(f"{output} holds no training run to go on with; leave out --resume")
    return read_recipe(file)


def _refuse_changes(recorded: Values, given: Values) -> None:
    for name, value in given.items():
        before = recorded.get(name, DEFAULTS[name])
        if name not in _FREE and _resolved(name, value) != _resolved(name, before):
            raise RequestError(
                f"{name} was {before} when this run began, and cannot be {value} now; leave it"
                " out, or begin a new run in another folder"
            )


def _path(name: str, value: Any) -> Path | None:
    """Return the path that the value of an option is; None if it is none."""
    if value is None or name not in ("model", "data", "validation"):
        return None
    path = local_path(value, RequestError)
    # A model may be a repository, too.
    is_path = name != "model" or (value != DEMO and path.is_dir())
    return path if is_path else None


def _resolved(name: str, value: Any) -> Any:
    """Return the same for all ways to write a path, and any other value as it is."""
    path = _path(name, value)
    return value if path is None else path.resolve()


def _newest(output: Path) -> int:
    if _is_finished(output):
        raise RequestError(f"the run in {output} is finished; its result can be used as it is")
    steps = saved_steps(output)
    if not steps:
        raise TrainingError(f"{output} has no checkpoint to go on from; remove it and begin again")
    return steps[-1]


def _train(
    values: Values, output: Path, first: int | None, processes: Processes, bars: TrainingBars
) -> TrainingResult:
    # All that can be wrong with config and rows is said before weights are read.
    _check_length(values)
    training_config(values, values["steps"] or 1)
    cache_bytes = values["image_cache"] * 1e9
    if not 0 <= cache_bytes < math.inf:
        raise RequestError(f"image_cache {values['image_cache']} must be at least 0 and finite")
    source = locate_checkpoint(
        values["model"], revision=values["revision"], show_progress=None if bars.shown else False
    )
    checkpoint = read_config(source)
    processor = load_processor(source, checkpoint)
    limits = DataLimits(
        max_length=checkpoint.model.decoder.context_size
        if values["max_length"] is None
        else values["max_length"],
        max_crops=values["max_crops"],
        min_pixels=None,
        max_pixels=None,
    )
    feed_config = LoaderConfig(
        batch_size=values["batch_size"],
        seed=values["seed"],
        text_share=values["text_share"],
        single_source=values["batches"] == "single-source",
        single_source_batches=values["single_source_steps"] * values["accumulate"],
        bucket_batches=values["bucket_batches"],
        pad_to_multiple=values["pad_to_multiple"],
        cache_bytes=int(cache_bytes),
    )
    data = prepare_data(read_mixture(values["data"]), processor, limits, progress=bars.show)
    feed = training_feed(data, feed_config, processes)
    validation = None
    if values["validation"]:
        rows = prepare_data(read_mixture(values["validation"]), processor, limits)
        validation = validation_feed(rows, feed_config)
    steps = _steps(values, feed.batches.steps_per_epoch)
    config = training_config(values, steps)
    newest = None if first is None else step_folder(output, first)
    if config.adapter is None:
        model, _ = load(newest or source, dtype="float32", progress=bars.show)
        prepare_model(model, config, None)
    else:
        model, _ = load(source, dtype=config.dtype, progress=bars.show)
        prepare_model(model, config, newest)
    if processes.is_first:
        _record(output, values)
    with interrupted_once() as should_stop:
        return train(
            model, feed, config, output, source, processes=processes,
            validation=validation, resume=first is not None,
            should_stop=should_stop, progress=bars.training(config.steps, first or 0),
        )  # fmt: skip


def _check_length(values: Values) -> None:
    steps, epochs = values["steps"], values["epochs"]
    if (steps is None) == (epochs is None):
        raise RequestError("give the length of the training with either --steps or --epochs")
    if steps is not None and steps < 1:
        raise RequestError(f"steps {steps} must be at least 1")
    if epochs is not None and not 0 < epochs < math.inf:
        raise RequestError(f"epochs {epochs} must be above 0 and finite")


def _steps(values: Values, batches_per_epoch: int) -> int:
    steps, epochs = values["steps"], values["epochs"]
    if epochs is None:
        return int(steps)
    exactly = epochs * batches_per_epoch / values["accumulate"]
    if not math.isfinite(exactly):
        raise RequestError(f"epochs {epochs} are too many")
    # All batches are learned, so a part of a step is a whole one. Rounded first, as a product of
    # floats may be a little too high.
    return max(1, math.ceil(round(exactly, 6)))


def _record(output: Path, values: Values) -> None:
    changed = {name: value for name, value in values.items() if value != DEFAULTS[name]}
    for name, value in changed.items():
        path = _path(name, value)
        if path is not None:
            # Not resolved: images are looked for beside a link, and not beside its target.
            changed[name] = str(path.absolute())
    try:
        (output / RUN_FOLDER).mkdir(parents=True, exist_ok=True)
        write_json(output / RUN_FOLDER / RECIPE_NAME, changed)
    except OSError as error:
        raise TrainingError(f"{output} cannot be written: {error.strerror}") from error


@contextmanager
def interrupted_once() -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C only be remembered; the second one ends the program as usual."""
    stops = False

    def remember(*_: object) -> None:
        nonlocal stops
        stops = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: stops
    finally:
        signal.signal(signal.SIGINT, before)


if __name__ == "__main__":
    # The module that the package has imported does the work, not this second copy of it.
    from .cli.main import run_subcommand

    sys.exit(run_subcommand("train"))
