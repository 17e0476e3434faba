"""How often the demo model is right, as it ships and with fewer bits, with and without tiles.

    python -m benchmarks.demo --chart benchmarks/charts

The questions are held out: none of their images was trained on.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.demo_model.accuracy import Accuracy, measure_accuracy
from jvlm_mlx import convert, load
from jvlm_mlx.checkpoint.hub import locate_checkpoint
from jvlm_mlx.demo.tasks import LANGUAGES, TASKS

from .harness.charts import heat_map
from .harness.machine import describe_machine
from .harness.report import json_line, markdown_table

BITS = (8, 4, 3)
_GROUP_SIZE = 32
"""All widths of the demo are multiples of it."""


@dataclass(frozen=True)
class Form:
    """One form of the model, and how it does."""

    name: str
    weight_bytes: int
    accuracy: Accuracy

    @property
    def by_task(self) -> dict[str, float]:
        """Fraction of right answers, by task."""
        return {task: self.accuracy.of(task=task).share for task in TASKS}

    @property
    def mean(self) -> float:
        """Mean over all tasks."""
        return sum(self.by_task.values()) / len(TASKS)


def measure_forms(model: str, bits: Sequence[int], examples: int) -> list[Form]:
    """Measure a model as it is, without tiles, and with fewer bits."""
    folder = locate_checkpoint(model)
    forms = [
        _measure("as it is", folder, examples, without_tiles=False),
        _measure("without tiles", folder, examples, without_tiles=True),
    ]
    with tempfile.TemporaryDirectory() as work:
        for each in bits:
            target = Path(work) / f"{each}-bit"
            convert(folder, target, quantize=True, q_bits=each, q_group_size=_GROUP_SIZE)
            forms.append(_measure(f"{each}-bit", target, examples, without_tiles=False))
    return forms


def _measure(name: str, folder: Path, examples: int, *, without_tiles: bool) -> Form:
    model, processor = load(folder, dtype="float32")
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    accuracy = measure_accuracy(model, processor, without_tiles=without_tiles, count=examples)
    return Form(name, size, accuracy)


def report(forms: Sequence[Form]) -> str:
    """Return the measurements as a Markdown table: a row for each task."""
    lines = [(task, *(f"{form.by_task[task]:.1%}" for form in forms)) for task in TASKS]
    lines.append(("mean", *(f"{form.mean:.1%}" for form in forms)))
    lines.append(("weights, MB", *(f"{form.weight_bytes / 1e6:.2f}" for form in forms)))
    return markdown_table(("task", *(form.name for form in forms)), lines)


def main(arguments: Sequence[str] | None = None, say: Callable[[str], None] = print) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default="demo", help="checkpoint of the demo's architecture")
    parser.add_argument("--bits", type=int, nargs="*", default=BITS)
    parser.add_argument("--examples", type=int, default=200, help="questions of each task")
    parser.add_argument("--chart", type=Path, metavar="DIR", help="write a PNG (needs matplotlib)")
    options = parser.parse_args(arguments)
    forms = measure_forms(options.model, options.bits, options.examples)
    say(forms[0].accuracy.table())
    say("")
    say(report(forms))
    languages = {
        language: forms[0].accuracy.of(language=language)._asdict() for language in LANGUAGES
    }
    content = {
        "machine": describe_machine(),
        "examples": options.examples,
        "languages": languages,
        "forms": {form.name: {"bytes": form.weight_bytes, **form.by_task} for form in forms},
    }
    say(json_line("demo", content))
    if options.chart:
        draw([content], options.chart)


def draw(lines: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Draw the last of the JSON lines of this benchmark."""
    forms = lines[-1]["forms"]
    tasks = [task for task in next(iter(forms.values())) if task != "bytes"]
    heat_map(
        folder / "demo.png",
        "The demo model: right answers (%)",
        tasks,
        list(forms),
        [[100 * form[task] for form in forms.values()] for task in tasks],
    )


if __name__ == "__main__":
    main()
