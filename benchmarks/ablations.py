"""What the design of Jina-VLM is worth, on the demo's tasks: small models trained in turn.

    python -m benchmarks.ablations --work WORK --chart benchmarks/charts     # overnight
    python -m benchmarks.ablations --work WORK --steps 300 --images 5000   # a first look

All variants begin with the tower and the decoder of the demo, as the release began with SigLIP2 and
Qwen3, and with a connector that has learned nothing. They see the same examples in the same order
for the same number of steps. What is finished is kept in WORK, so a run that was interrupted
resumes.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from benchmarks.demo_model.accuracy import measure_accuracy
from benchmarks.demo_model.architecture import FEATURE_LAYERS, POOLING_SIZE
from benchmarks.demo_model.initialization import write_initialized
from benchmarks.demo_model.training_data import write_data
from jvlm_mlx import Model, Processor, StepReport, TrainingConfig, load, train
from jvlm_mlx.demo.tasks import TASKS

from .harness.charts import Band, Estimate, dot_chart
from .harness.machine import describe_machine
from .harness.report import json_line, markdown_table

_TEXT_TASKS = ("text_only",)
_IMAGE = (128, 128)
"""Height and width of the image whose tokens are counted: four tiles and a thumbnail."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to build or to train the model."""

    name: str
    pooling: str
    """`attention`, `mean` or `none`."""
    text_share: float
    feature_layers: tuple[int, ...]


BASE = Variant(
    name="as released",
    pooling="attention",
    text_share=0.15,
    feature_layers=FEATURE_LAYERS,
)


def _variant(name: str, **changes: Any) -> Variant:
    return Variant(**{**asdict(BASE), "name": name, **changes})


VARIANTS = {
    variant.name: variant
    for variant in (
        BASE,
        _variant("mean pooling", pooling="mean"),
        _variant("no pooling", pooling="none"),
        _variant("0 % text", text_share=0.0),
        _variant("30 % text", text_share=0.3),
        _variant("last two layers", feature_layers=(-2, -3)),
        _variant("last layer alone", feature_layers=(-2,)),
    )
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a variant."""

    image_accuracy: float
    """Fraction of right answers, the mean over all tasks with images."""
    text_accuracy: float
    """Fraction of right answers to questions without an image."""
    by_task: dict[str, float]
    image_tokens: int
    """Tokens that an image of four tiles takes in the prompt."""
    seconds_per_step: float
    """Median."""
    loss: float
    """Mean of the last tenth of the steps."""


class MeanPooling(nn.Module):
    """The mean of a window's vectors, brought to the tower's width."""

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        self.out = nn.Linear(input_size, output_size)

    def __call__(self, windows: mx.array) -> mx.array:
        """Map windows (W, p, input_size) of p vectors each to (W, output_size)."""
        return self.out(windows.mean(axis=1))


def build(variant: Variant, folder: Path, seed: int, start: str) -> tuple[Model, Processor]:
    """Return a variant before its training; `folder` gets its checkpoint.

    Args:
        variant: what to build.
        folder: must be new.
        seed: of the connector.
        start: checkpoint of the demo's architecture, of which all but the connector is taken.
    """
    write_initialized(
        folder,
        seed,
        pooling_size=(1, 1) if variant.pooling == "none" else POOLING_SIZE,
        feature_layers=variant.feature_layers,
    )
    model, processor = load(folder)
    pretrained, _ = load(start, dtype="float32")
    modules = pretrained.parameters()
    del modules["connector"]
    model.update(modules)
    if variant.pooling == "mean":
        config = model.config.tower
        pooling = MeanPooling(config.feature_size, config.hidden_size)
        model.connector.update_modules({"pooling": pooling})
    return model, processor


def run_variant(variant: Variant, data: Path, work: Path, arguments: argparse.Namespace) -> Outcome:
    """Train and measure one variant."""
    model, processor = build(variant, work / "untrained", arguments.seed, arguments.start)
    reports: list[StepReport] = []
    train(
        model,
        source=work / "untrained",
        data=write_mixture(data, work, with_text=variant.text_share > 0),
        output=work / "trained",
        config=training_config(arguments.steps, arguments.learning_rate, arguments.seed),
        batch_size=arguments.batch_size,
        text_fraction=variant.text_share,
        on_report=reports.append,
    )
    accuracy = measure_accuracy(model, processor, count=arguments.examples)
    by_task = {task: accuracy.of(task=task).share for task in TASKS}
    last = reports[-max(1, len(reports) // 10) :]
    return Outcome(
        image_accuracy=statistics.mean(
            share for task, share in by_task.items() if task not in _TEXT_TASKS
        ),
        text_accuracy=statistics.mean(by_task[task] for task in _TEXT_TASKS),
        by_task=by_task,
        image_tokens=processor.image_layout(*_IMAGE).num_tokens,
        seconds_per_step=statistics.median(report.seconds for report in reports),
        loss=statistics.mean(report.loss for report in last),
    )


def write_mixture(data: Path, work: Path, *, with_text: bool) -> Path:
    """Write captions and questions, with or without text, as one mixture; return its file."""
    sources = json.loads((data / "stage2.json").read_text(encoding="utf-8"))["sources"]
    sources = [
        source | {"path": str((data / source["path"]).resolve())}
        for source in sources
        if with_text or source["kind"] != "text"
    ]
    file = work / "mixture.json"
    file.write_text(json.dumps({"sources": sources}), encoding="utf-8")
    return file


def training_config(steps: int, learning_rate: float, seed: int) -> TrainingConfig:
    """Return how all variants are trained: the connector faster, and sooner at its full rate."""

    warmup = steps // 15
    return TrainingConfig(
        fine_tune_type="full",
        iters=steps,
        max_seq_length=4096,
        pad_to_multiple=8,
        learning_rate=learning_rate,
        warmup_iters=warmup,
        connector_learning_rate=4 * learning_rate,
        connector_warmup_iters=warmup // 3,
        floor=0.02,
        betas=(0.9, 0.98),
        dtype="float32",
        seed=seed,
        save_every=0,
    )


def report(outcomes: dict[str, Outcome]) -> str:
    """Return the outcomes as Markdown tables: all in all, and by task."""
    rows = [
        (
            name,
            f"{outcome.image_accuracy:.1%}",
            f"{outcome.text_accuracy:.1%}",
            outcome.image_tokens,
            f"{outcome.seconds_per_step:.2f}",
            f"{outcome.loss:.3f}",
        )
        for name, outcome in outcomes.items()
    ]
    header = ("variant", "images", "text", "tokens an image", "s a step", "loss")
    tasks = [
        (task, *(f"{outcome.by_task[task]:.1%}" for outcome in outcomes.values())) for task in TASKS
    ]
    return f"{markdown_table(header, rows)}\n\n{markdown_table(('task', *outcomes), tasks)}"


def main(arguments: Sequence[str] | None = None, say: Callable[[str], None] = print) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for data and results")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--images", type=int, default=48000, help="images to train on")
    parser.add_argument("--steps", type=int, default=3000, help="updates of each variant")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--examples", type=int, default=200, help="questions of each task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", default="demo", help="checkpoint that all begin with")
    parser.add_argument("--chart", type=Path, metavar="DIR", help="write a PNG (needs matplotlib)")
    options = parser.parse_args(arguments)
    data = options.work / "data"
    if not data.exists():
        write_data(data, options.images, options.seed, 1)
    outcomes: dict[str, Outcome] = {}
    for name in options.variants:
        done = options.work / f"{name.replace(' ', '-').replace('%', 'percent')}.json"
        if not done.exists():
            with tempfile.TemporaryDirectory(dir=options.work) as work:
                outcome = run_variant(VARIANTS[name], data, Path(work), options)
            part = done.with_suffix(".part")
            part.write_text(json.dumps(asdict(outcome)), encoding="utf-8")
            shutil.move(part, done)
            say(f"{name}: {outcome.image_accuracy:.1%} of images, {outcome.loss:.3f} loss")
        outcomes[name] = Outcome(**json.loads(done.read_text(encoding="utf-8")))
    say(report(outcomes))
    content = {
        "machine": describe_machine(),
        "steps": options.steps,
        "seed": options.seed,
        "examples": options.examples,
        "variants": {name: asdict(outcome) for name, outcome in outcomes.items()},
    }
    say(json_line("ablations", content))
    if options.chart:
        draw([content], options.chart)


def draw(lines: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Draw the JSON lines of this benchmark: the first, and beside it those of other seeds."""
    first = lines[0]
    names = list(first["variants"])
    tasks = len(TASKS) - len(_TEXT_TASKS)
    dots = {"text": _estimates(first, names, "text_accuracy", len(_TEXT_TASKS))}
    for line in lines:
        seed = f", seed {line['seed']}" if len(lines) > 1 else ""
        dots[f"images{seed}"] = _estimates(line, names, "image_accuracy", tasks)
    spread = max(
        abs(line["variants"][name]["image_accuracy"] - first["variants"][name]["image_accuracy"])
        for line in lines
        for name in line["variants"]
    )
    base = first["variants"][BASE.name]["image_accuracy"]
    band = Band(100 * (base - spread), 100 * (base + spread), "what another seed changes")
    dot_chart(
        folder / "ablations.png",
        f"What the design is worth: right answers after {first['steps']} steps",
        "Right answers (%), 95 % intervals of the questions",
        names,
        dots,
        band=band if spread else None,
    )


def _estimates(
    line: Mapping[str, Any], names: Sequence[str], figure: str, tasks: int
) -> list[Estimate | None]:
    """Return a figure of variants with Wilson's interval; that tasks differ would narrow it."""
    count = tasks * line["examples"]
    found: list[Estimate | None] = []
    for name in names:
        if (outcome := line["variants"].get(name)) is None:
            found.append(None)
            continue
        fraction, z = outcome[figure], 1.96
        middle = fraction + z * z / (2 * count)
        half = z * (fraction * (1 - fraction) / count + (z / (2 * count)) ** 2) ** 0.5
        low, high = ((middle + sign * half) / (1 + z * z / count) for sign in (-1, 1))
        found.append(Estimate(100 * fraction, 100 * low, 100 * max(high, fraction)))
    return found


if __name__ == "__main__":
    main()
