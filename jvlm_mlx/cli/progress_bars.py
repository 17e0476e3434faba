"""Progress on standard error: only on a terminal, and gone when the work is done."""

import sys
from typing import TYPE_CHECKING, Any

from ..progress import ProgressEvent

if TYPE_CHECKING:
    from ..training.reports import StepReport


def wants_progress(quiet: bool) -> bool:
    """Return whether progress should be shown: someone is watching and did not ask for quiet."""
    return not quiet and sys.stderr is not None and sys.stderr.isatty()


class ProgressBars:
    """One bar at a time, replaced when the next stage of the work begins."""

    def __init__(self, shown: bool) -> None:
        self.shown = shown
        self._stage = ""
        self._bar: Any = None

    def show(self, event: ProgressEvent) -> None:
        """Show how far a stage has come: the `progress` of every function that takes one."""
        if not self.shown:
            return
        if event.stage != self._stage:
            self.close()
            from huggingface_hub.utils import tqdm

            self._stage = event.stage
            # What was done before the first event, by an earlier run, does not count for the rate.
            self._bar = tqdm(
                total=event.total,
                desc=event.stage,
                initial=event.done if event.done < event.total else 0,
                unit=event.unit,
                unit_scale=event.unit == "B",
                leave=False,
            )
        if event.note:
            self._bar.set_postfix_str(event.note, refresh=False)
        self._bar.update(event.done - self._bar.n)
        if event.done >= event.total:
            self.close()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
        self._bar, self._stage = None, ""

    def __enter__(self) -> "ProgressBars":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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

    def report(self, report: "StepReport") -> None:
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
