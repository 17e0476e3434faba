"""Runs of a benchmark side by side, as a table, a JSON file and a chart."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import RequestError
from ..evaluation.paired import Comparison, Side
from ..files import atomic_file
from .formatting import new_figure, save_figure, style_axes, table

_MAX_TEXT = 40
_HEAD = ("run", "score", "95 %", "difference", "95 %", "better", "worse", "p")


def as_text(comparisons: Sequence[Comparison], *, published: bool, changed: int) -> str:
    """Return tables for the terminal.

    Args:
        comparisons: one for each benchmark.
        published: whether the paper's figure has a line of its own.
        changed: how many questions with another answer are shown of each run.
    """
    return "\n\n".join(_comparison(one, published, changed) for one in comparisons)


def _comparison(comparison: Comparison, published: bool, changed: int) -> str:
    rows = [_line(side) for side in comparison.sides]
    if published:
        paper = comparison.published
        rows.append(["published", "-" if paper is None else f"{paper:.1f}", *[""] * 6])
    unit = "points" if comparison.unit == "points" else "%"
    left_out = f"; {comparison.left_out} are not in all runs" if comparison.left_out else ""
    parts = [
        f"{comparison.benchmark}, {comparison.figure} in {unit},"
        f" {comparison.questions} questions{left_out}",
        table(_HEAD, rows, left=(0,)),
    ]
    for side in comparison.sides:
        if side.changed and changed:
            parts.append(_changes(side, changed))
    return "\n".join(parts)


def _line(side: Side) -> list[str]:
    if side.difference is None:
        return [side.run, f"{side.score:.1f}", _bounds(side.interval), *[""] * 5]
    return [
        side.run,
        f"{side.score:.1f}",
        _bounds(side.interval),
        f"{side.difference:+.1f}",
        _bounds(side.difference_interval, "+"),
        str(side.better),
        str(side.worse),
        f"{side.p:.3f}",
    ]


def _bounds(bounds: Sequence[float] | None, sign: str = "") -> str:
    return "" if bounds is None else " to ".join(f"{bound:{sign}.1f}" for bound in bounds)


def _changes(side: Side, changed: int) -> str:
    head = ("index", "answer", "first run", side.run, "score")
    rows = []
    for change in side.changed[:changed]:
        old, new = change["scores"]
        texts = [_short(text) for text in (change["answer"], *change["predictions"])]
        rows.append([str(change["index"]), *texts, f"{old:g} -> {new:g}"])
    shown = f"{len(rows)} of {len(side.changed)} changed answers"
    return f"\n{shown}\n{table(head, rows, left=(0, 1, 2, 3))}"


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"


def write_comparison(
    comparisons: Sequence[Comparison], file: Path | None, chart: Path | None, published: bool
) -> None:
    """Write comparisons as JSON and as a chart of scores with their intervals.

    Raises:
        RequestError: a file cannot be written, or matplotlib is not installed.
    """
    if chart is not None:
        save_figure(_draw(comparisons, published), chart, RequestError)
    if file is not None:
        content = [comparison.as_json() for comparison in comparisons]
        with atomic_file(file, RequestError) as temporary:
            temporary.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", "utf-8")


def _draw(comparisons: Sequence[Comparison], published: bool) -> Any:
    figure = new_figure("chart")
    panels = figure.subplots(1, len(comparisons), squeeze=False)[0]
    label: str | None = "published"
    for axes, comparison in zip(panels, comparisons, strict=True):
        names = [side.run for side in comparison.sides]
        for place, side in enumerate(comparison.sides):
            low, high = side.interval or (side.score, side.score)
            axes.errorbar(
                side.score,
                place,
                xerr=[[side.score - low], [high - side.score]],
                fmt="o",
                capsize=4,
                color="C0",
            )
            axes.annotate(
                f"{side.score:.1f}", (side.score, place), (0, 7), textcoords="offset points",
                ha="center",
            )  # fmt: skip
        if published and comparison.published is not None:
            axes.axvline(comparison.published, color="C1", linestyle="--", label=label)
            label = None  # the legend is that of all panels
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        unit = "points" if comparison.unit == "points" else "%"
        described = f"{comparison.figure} ({unit}), 95 % intervals"
        style_axes(axes, comparison.benchmark, xlabel=described)
    return figure
