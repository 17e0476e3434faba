"""What a run reports: one JSON object a line, for every reported step and every validation."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config.json_file import parse_json
from ..errors import TrainingError

METRICS_NAME = "metrics.jsonl"


class MetricsFile:
    """The file of metrics; each line is on the disk when `write` returns."""

    def __init__(self, file: Path, first_step: int) -> None:
        """Open the file, keeping the lines up to a step.

        A resumed run repeats the steps behind its checkpoint, and reports them again.

        Args:
            file: is created if need be.
            first_step: steps done before this run goes on.
        """
        kept = [line for line in _lines(file) if line["step"] <= first_step]
        file.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
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
            raise TrainingError(
                f"{self._file} cannot be written: {error.strerror or error}"
            ) from error


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """Return all lines of a file of metrics."""
    return _lines(file)


def _lines(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    lines = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            value = parse_json(line)
        except ValueError:
            continue  # the end of a line that a killed process did not finish
        if isinstance(value, dict) and isinstance(value.get("step"), int):
            lines.append(value)
    return lines
