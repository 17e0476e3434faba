"""A chart of a run's losses, from its metrics."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import TrainingError
from ..training.reports import read_metrics
from .formatting import new_figure, save_figure, style_axes


def write_chart(metrics: Path, file: Path) -> None:
    """Write an image of the losses by step; none of a run that has not reported any.

    Args:
        metrics: file of metrics.
        file: to write, a PNG.

    Raises:
        RequestError: matplotlib is not installed.
        TrainingError: the file cannot be written.
    """
    lines = [line for line in read_metrics(metrics) if "loss" in line]
    if not lines:
        return
    figure = new_figure("chart")
    axes = figure.subplots()
    steps, losses = [line["step"] for line in lines], [line["loss"] for line in lines]
    axes.plot(steps, losses, alpha=0.3, color="C0", label="training")
    axes.plot(steps, _smooth(losses), color="C0", label="training, smoothed")
    validated = [line for line in lines if "validation_loss" in line]
    if validated:
        axes.plot(
            [line["step"] for line in validated],
            [line["validation_loss"] for line in validated],
            marker="o",
            color="C1",
            label="validation",
        )
    style_axes(axes, xlabel="iteration", ylabel="loss per target token (nats)", ylim=(0, None))
    save_figure(figure, file, TrainingError)


def _smooth(losses: list[float]) -> npt.NDArray[np.float64]:
    """Return the mean of each loss and those around it, fewer of them at both ends."""
    width = 2 * (len(losses) // 50) + 1
    window = np.ones(width)
    sums = np.convolve(losses, window, mode="same")
    return sums / np.convolve(np.ones(len(losses)), window, mode="same")
