"""Progress of a training run: a bar on a terminal, lines anywhere else."""

import sys

from ..training.reports import StepReport
from .progress_bars import ProgressBars, wants_progress


class TrainingBars(ProgressBars):
    """Bars of loading and checking, then one of the iterations with loss, time left and memory.

    Validation losses are lines above the bar, which stay. Where standard output is no terminal,
    or standard error is none, every report is a line of standard output.
    """

    def __init__(self, quiet: bool) -> None:
        super().__init__(wants_progress(quiet))
        self._prints = not quiet and not (self.shown and sys.stdout.isatty())

    def __enter__(self) -> "TrainingBars":
        return self

    def report(self, report: StepReport) -> None:
        """Show what was reported of an iteration."""
        if self._prints:
            print(report.line(), flush=True)
        if self._bar is None:
            return
        if report.validation_loss is not None:
            line = f"iteration {report.step}: validation loss {report.validation_loss:.4f}"
            self._bar.write(line, file=sys.stderr)
        values = {"loss": f"{report.loss:.3f}", "memory": f"{report.peak_memory / 1e9:.1f} GB"}
        self._bar.set_postfix(values, refresh=False)
