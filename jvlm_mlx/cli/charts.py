"""Charts that users ask for: losses of one training run, or of several that follow one another, and
weight errors of a conversion by layer.
"""

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..conversion.weight_error import relative_error
from ..errors import ConversionError, TrainingError
from ..files import local_path
from ..training.reports import read_metrics
from .formatting import new_figure, save_figure, style_axes

if TYPE_CHECKING:
    from ..conversion.verification import Verification

_LOGARITHMIC = 10
"""From which ratio of smoothed losses on the axis is logarithmic."""


def write_chart(runs: Mapping[str, Path], file: Path) -> None:
    """Write an image of the losses by iteration; none of runs that have not reported any.

    Args:
        runs: file of metrics of each run, by its name. Several are drawn one after the other, with
            their names at the borders.
        file: to write, a PNG.

    Raises:
        RequestError: matplotlib is not installed.
        TrainingError: the file cannot be written.
    """
    reports = {
        name: [line for line in read_metrics(metrics) if "loss" in line]
        for name, metrics in runs.items()
    }
    if not any(reports.values()):
        return
    axes = new_figure("chart").subplots()
    start = 0
    smoothed: list[npt.NDArray[np.float64]] = []
    for name, lines in reports.items():
        if not lines:
            continue
        smoothed.append(_draw_run(axes, lines, start, is_first=not smoothed))
        if len(reports) > 1:
            axes.axvline(start, color="0.6", linewidth=1)
            axes.annotate(
                name, (start, 1), (4, -4), xycoords=("data", "axes fraction"),
                textcoords="offset points", rotation=90, va="top", color="0.4",
            )  # fmt: skip
        start += lines[-1]["step"]
    lowest, highest = (extreme(map(extreme, smoothed)) for extreme in (min, max))
    is_logarithmic = 0 < lowest * _LOGARITHMIC < highest
    style_axes(axes, xlabel="Iteration", ylabel="Loss per target token (nats)")
    if is_logarithmic:
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, None)
    save_figure(axes.figure, file, TrainingError)


def _draw_run(
    axes: Any, lines: list[dict[str, Any]], start: int, *, is_first: bool
) -> npt.NDArray[np.float64]:
    """Draw a run that begins behind `start` iterations of others; return its smoothed losses."""

    def label(text: str) -> str | None:
        return text if is_first else None

    steps = [start + line["step"] for line in lines]
    losses = [line["loss"] for line in lines]
    smoothed = _smooth(losses)
    axes.plot(steps, losses, alpha=0.3, color="C0", label=label("training"))
    axes.plot(steps, smoothed, color="C0", label=label("mean of it and those before"))
    validated = [line for line in lines if "validation_loss" in line]
    if validated:
        axes.plot(
            [start + line["step"] for line in validated],
            [line["validation_loss"] for line in validated],
            marker="o", color="C1", label=label("validation"),
        )  # fmt: skip
    return smoothed


def _smooth(losses: list[float]) -> npt.NDArray[np.float64]:
    """Return the mean of each loss and some before it, so that nothing is anticipated."""
    width = len(losses) // 25 + 1
    sums = np.cumsum(np.concatenate((np.zeros(width), losses)))
    counts = np.minimum(np.arange(1, len(losses) + 1), width)
    return (sums[width:] - sums[:-width]) / counts


def check_plot(file: Path) -> None:
    """Refuse a plot that could not be written, before anything is measured for it.

    Raises:
        RequestError: matplotlib is not installed.
        ConversionError: the file cannot be written, or is of no kind that matplotlib writes.
    """
    kinds = new_figure("plot").canvas.get_supported_filetypes()
    file = local_path(file, ConversionError)
    kind = file.suffix[1:].lower()
    if kind and kind not in kinds:
        raise ConversionError(f"{file} cannot be written: no plot is a {file.suffix}; give a .png")
    problem = None
    if file.is_dir():
        problem = errno.EISDIR
    elif not file.parent.is_dir():
        problem = errno.ENOTDIR if file.parent.exists() else errno.ENOENT
    elif not os.access(file if file.exists() else file.parent, os.W_OK):
        problem = errno.EACCES
    if problem is not None:
        raise ConversionError(f"{file} cannot be written: {os.strerror(problem)}")


def write_plot(verification: "Verification", file: Path) -> None:
    """Write an image of the relative error by layer of tower and decoder, and of the rest.

    Raises:
        RequestError: matplotlib is not installed.
        ConversionError: the file cannot be written.
    """
    figure = new_figure("plot")
    layers, others = figure.subplots(1, 2, width_ratios=(3, 1), sharey=True)
    rest = []
    for module, error in verification.weight_errors().items():
        errors = [one for one in verification.weights if one.module == module]
        numbers = sorted({one.layer for one in errors if one.layer is not None})
        if numbers:
            by_layer = [
                100 * relative_error([one for one in errors if one.layer == number])
                for number in numbers
            ]
            layers.plot(numbers, by_layer, marker="o", label=module)
        else:
            rest.append((module, 100 * error))
    others.bar([module for module, _ in rest], [error for _, error in rest])
    others.tick_params(axis="x", rotation=45)
    style_axes(layers, xlabel="layer", ylabel="relative error of weights in %")
    style_axes(others)
    layers.set_ylim(bottom=0)
    figure.suptitle(f"{Path(verification.converted).name} against {verification.source}")
    save_figure(figure, local_path(file, ConversionError), ConversionError)
