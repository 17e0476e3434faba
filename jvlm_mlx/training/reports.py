"""What a run reports of its iterations: on the terminal, and in a file of JSON lines."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.json_file import parse_json
from ..errors import TrainingError
from ..files import atomic_file, reason

METRICS_NAME = "metrics.jsonl"


@dataclass(frozen=True)
class StepReport:
    """One iteration."""

    step: int
    """Iterations so far, this one included."""
    iters: int
    """Iterations of the whole run."""
    loss: float
    """Mean cross entropy of a target token, in nats, before the update."""
    validation_loss: float | None
    """The same over the validation examples, after the update; None where none was due."""
    gradient_norm: float
    """Before clipping."""
    learning_rates: dict[str, float]
    """By module."""
    target_tokens: int
    """Tokens that the loss is the mean of."""
    tokens_per_second: float
    """Tokens of all examples, padding left out, over the time of the whole iteration."""
    images_per_second: float
    seconds: float
    """Of the iteration, waiting for data included."""
    peak_memory: int
    """Most bytes that MLX has held so far."""

    def metrics(self) -> dict[str, Any]:
        """Return the report as JSON."""
        values = dataclasses.asdict(self)
        if self.validation_loss is None:
            del values["validation_loss"]
        return values

    def line(self) -> str:
        """Return the report as a line of text."""
        rates = "/".join(f"{rate:.3g}" for rate in dict.fromkeys(self.learning_rates.values()))
        validation = self.validation_loss
        parts = [
            f"iteration {self.step}/{self.iters}: loss {self.loss:.4f}",
            *([] if validation is None else [f"validation loss {validation:.4f}"]),
            f"learning rate {rates}",
            f"{self.tokens_per_second:.0f} tokens/s",
            f"{self.peak_memory / 1e9:.1f} GB",
        ]
        return ", ".join(parts)


class MetricsFile:
    """The file of metrics; each line is in the file when `write` returns."""

    def __init__(self, file: Path, first_step: int) -> None:
        """Open the file, keeping the lines up to iteration `first_step`.

        A resumed run repeats the iterations behind its checkpoint, and reports them again.

        Raises:
            TrainingError: it cannot be written.
        """
        kept = [line for line in read_metrics(file) if line["step"] <= first_step]
        with atomic_file(file, TrainingError) as work:
            work.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._file = file

    def write(self, values: Mapping[str, Any]) -> None:
        """Add a line.

        Raises:
            TrainingError: it cannot be written.
        """
        try:
            with self._file.open("a", encoding="utf-8") as opened:
                opened.write(json.dumps(values) + "\n")
        except OSError as error:
            raise TrainingError(f"{self._file} cannot be written: {reason(error)}") from error


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """Return all lines of a file of metrics; none if there is no such file."""
    if not file.is_file():
        return []
    lines = []
    for line in file.read_bytes().splitlines():
        try:
            value = parse_json(line)
        except ValueError:
            continue  # the end of a line that a killed process did not finish
        if isinstance(value, dict) and isinstance(value.get("step"), int):
            lines.append(value)
    return lines
