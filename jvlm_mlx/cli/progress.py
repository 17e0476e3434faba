"""Progress on standard error: only on a terminal, and gone when the work is done."""

import sys
from typing import Any

from huggingface_hub.utils import tqdm

_NAMES = {"tiles": "images", "prompt": "prompt"}
_UNITS = {"tiles": "tile", "prompt": "token"}

_QUESTION_STAGES = ("source", "converted")


def wants_progress(quiet: bool) -> bool:
    """Return whether progress should be shown: someone is watching and did not ask for quiet."""
    return not quiet and sys.stderr.isatty()


class ProgressBars:
    """One bar at a time, replaced when the next stage of the work begins."""

    def __init__(self, shown: bool) -> None:
        self.shown = shown
        self._stage = ""
        self._bar: Any = None

    def load(self, done: int, total: int) -> None:
        """Show bytes of weights that have been read."""
        self._show("loading", done, total, unit="B", unit_scale=True)

    def stage(self, stage: str, done: int, total: int) -> None:
        """Show a stage of an answer: the progress callback of `stream_generate`."""
        self._show(_NAMES[stage], done, total, unit=_UNITS[stage])

    def conversion(self, stage: str, done: int, total: int) -> None:
        """Show a stage of `convert` or `verify`, in bytes or in questions."""
        if stage in _QUESTION_STAGES:
            self._show(stage, done, total, unit="question")
        else:
            self._show(stage, done, total, unit="B", unit_scale=True)

    def rows(self, done: int, total: int, note: str = "") -> None:
        """Show rows of a batch; those done before it began do not count for the rate."""
        self._show("rows", done, total, note, unit="row", initial=done)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
        self._bar, self._stage = None, ""

    def _show(
        self, stage: str, done: int, total: int, note: str = "", **format_options: Any
    ) -> None:
        if not self.shown:
            return
        if stage != self._stage:
            self.close()
            self._stage = stage
            self._bar = tqdm(total=total, desc=stage, leave=False, **format_options)
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._bar.n)
        if done >= total:
            self.close()

    def __enter__(self) -> "ProgressBars":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
