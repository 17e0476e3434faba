"""Progress of a training run: one bar with loss, time left and memory."""

from huggingface_hub.utils import tqdm

from ..training.step_report import StepReport
from ..training.trainer import Progress
from .progress_bars import ProgressBars


class TrainingBars(ProgressBars):
    """Bars of loading and checking, and then the bar of the steps."""

    _validation = ""

    def __enter__(self) -> "TrainingBars":
        return self

    def training(self, steps: int, first: int) -> Progress:
        """Return what shows every step.

        Args:
            steps: of the whole run.
            first: those done already.
        """
        if not self.shown:
            return lambda _: None
        self.close()
        self._bar = tqdm(total=steps, initial=first, desc="training", unit="step")

        def show(report: StepReport) -> None:
            values = {"loss": f"{report.loss:.3f}", "memory": f"{report.peak_memory / 1e9:.1f} GB"}
            if report.validation_loss is not None:
                self._validation = f"{report.validation_loss:.3f}"
            if self._validation:
                values["validation"] = self._validation
            self._bar.set_postfix(values, refresh=False)
            self._bar.update(report.step - self._bar.n)

        return show
