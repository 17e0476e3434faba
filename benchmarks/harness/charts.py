"""Charts of benchmarks, of one size and style; they need matplotlib (the extra `plot`).

Titles and labels of axes begin with a capital and name the unit; what is measured is spelled as in
the tables.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jvlm_mlx.cli.formatting import new_figure, save_figure, style_axes
from jvlm_mlx.errors import RequestError

from .timing import readable_seconds


class Estimate(NamedTuple):
    """A value, the ends of its error bar, and how it is written beside it."""

    value: float
    low: float
    high: float
    text: str = ""

    @classmethod
    def of_timing(cls, summary: Mapping[str, float]) -> "Estimate":
        """Return the median and the range of what `Timing.summary` has of repeats."""
        median, fastest = summary["seconds"], summary["fastest"]
        slowest = fastest + summary["spread"] * median
        return cls(median, fastest, slowest, readable_seconds(median))


class Band(NamedTuple):
    """A range of values that says nothing, and why."""

    low: float
    high: float
    label: str


def bar_chart(
    file: Path,
    title: str,
    label: str,
    rows: Sequence[str],
    bars: Mapping[str, Sequence[Estimate]],
    *,
    logarithmic: bool = False,
) -> None:
    """Write a PNG of bars side by side, with their values.

    Args:
        file: to write.
        title: of the chart.
        label: of the values, with their unit.
        rows: names of the groups of bars.
        bars: of each kind, one for each row.
        logarithmic: for values that differ by orders of magnitude.
    """
    axes = new_figure("chart").subplots()
    height = 0.8 / len(bars)
    for number, (name, estimates) in enumerate(bars.items()):
        places = [row + (number - (len(bars) - 1) / 2) * height for row in range(len(rows))]
        axes.barh(
            places, _values(estimates), 0.9 * height, label=name, xerr=_errors(estimates),
            ecolor="0.3", capsize=2,
        )  # fmt: skip
        for place, one in zip(places, estimates, strict=True):
            axes.annotate(
                one.text, (one.high, place), (5, 0), textcoords="offset points", va="center",
                fontsize="small",
            )  # fmt: skip
    axes.margins(x=0.1)  # room for the values
    _save(axes, file, title, rows=rows, xlabel=label, xscale="log" if logarithmic else "linear")


def dot_chart(
    file: Path,
    title: str,
    label: str,
    rows: Sequence[str],
    dots: Mapping[str, Sequence[Estimate | None]],
    *,
    band: Band | None = None,
) -> None:
    """Write a PNG of values as dots, whose axis need not begin at zero; see `bar_chart`.

    Args:
        file: to write.
        title: of the chart.
        label: of the values, with their unit.
        rows: names of the groups of dots.
        dots: of each kind, one for each row; None where there is none.
        band: values that differ by chance alone.
    """
    axes = new_figure("chart").subplots()
    if band is not None:
        axes.axvspan(band.low, band.high, color="0.9", label=band.label, linewidth=0)
    for number, (name, estimates) in enumerate(dots.items()):
        shift = 0.5 * (number - (len(dots) - 1) / 2) / len(dots)
        places = [row + shift for row, one in enumerate(estimates) if one is not None]
        found = [one for one in estimates if one is not None]
        axes.errorbar(
            _values(found), places, xerr=_errors(found), capsize=2, label=name, markersize=5,
            fmt="osD^v"[number],
        )  # fmt: skip
    _save(axes, file, title, rows=rows, xlabel=label)


def line_chart(
    file: Path,
    title: str,
    x_label: str,
    y_label: str,
    lines: Mapping[str, tuple[Sequence[float], Sequence[Estimate]]],
) -> None:
    """Write a PNG of lines (x, estimates of y) from zero, and one in proportion to x.

    It begins where the first line does. The top of the chart is above every point.
    """
    axes = new_figure("chart").subplots()
    for name, (sizes, estimates) in lines.items():
        axes.errorbar(
            sizes, _values(estimates), yerr=_errors(estimates), capsize=2, label=name,
            markersize=5, fmt="o-",
        )  # fmt: skip
    sizes, estimates = next(iter(lines.values()))
    slope = estimates[0].value / sizes[0]
    top = max(one.high for _, each in lines.values() for one in each)
    axes.plot(
        (0, max(sizes)), (0, slope * max(sizes)), "--", color="0.6", label="in proportion", zorder=1
    )
    limits = (0, 1.1 * max(top, min(slope * max(sizes), 1.5 * top)))
    _save(axes, file, title, xlabel=x_label, ylabel=y_label, ylim=limits, xlim=(0, None))


def heat_map(
    file: Path,
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    percentages: Sequence[Sequence[float]],
) -> None:
    """Write a PNG of a table of percentages, each on a ground that is darker for less."""
    axes = new_figure("chart").subplots()
    axes.imshow(percentages, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    for row, values in enumerate(percentages):
        for column, value in enumerate(values):
            color = "white" if value < 60 else "black"
            axes.text(column, row, f"{value:.1f}", color=color, ha="center", va="center")
    axes.set_xticks(range(len(columns)), columns)
    axes.tick_params(length=0)
    _save(axes, file, title, rows=rows, grid=False)


def _values(estimates: Sequence[Estimate]) -> list[float]:
    return [one.value for one in estimates]


def _errors(estimates: Sequence[Estimate]) -> list[list[float]]:
    """Return what matplotlib wants of error bars: their lengths below and above the values."""
    return [
        [one.value - one.low for one in estimates],
        [one.high - one.value for one in estimates],
    ]


def _save(
    axes: Any,
    file: Path,
    title: str,
    *,
    rows: Sequence[str] | None = None,
    grid: bool = True,
    **labels: Any,
) -> None:
    style_axes(axes, title, **labels)
    axes.grid(visible=grid)
    if rows is not None:
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.5, -0.5)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_figure(axes.figure, file, RequestError)
