"""Tables, JSON lines and charts."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table with aligned columns; all but the first align right."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        first, *rest = (
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "| " + " | ".join((first, *rest)) + " |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(line(row) for row in (cells[0], rule, *cells[1:]))


def json_line(benchmark: str, content: dict[str, Any]) -> str:
    """Return one line of JSON, for collecting runs in a file."""
    return json.dumps({"benchmark": benchmark, **content}, ensure_ascii=False)


def bar_chart(
    file: Path, title: str, unit: str, labels: Sequence[str], bars: Mapping[str, Sequence[float]]
) -> None:
    """Write a PNG of bars side by side; needs matplotlib (the extra `plot`)."""
    axes = _axes(title)
    height = 0.8 / len(bars)
    for place, (name, values) in enumerate(bars.items()):
        places = [index + place * height for index in range(len(labels))]
        axes.barh(places, values, height, label=name)
    axes.set_yticks([index + 0.4 - height / 2 for index in range(len(labels))], labels)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    _save(axes, file)


def line_chart(
    file: Path,
    title: str,
    x_label: str,
    y_label: str,
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
) -> None:
    """Write a PNG of lines (x values, y values); needs matplotlib (the extra `plot`)."""
    axes = _axes(title)
    for name, (x, y) in lines.items():
        axes.plot(x, y, marker="o", label=name)
    axes.set(xlabel=x_label, ylabel=y_label, ylim=(0, None))
    _save(axes, file)


def _axes(title: str) -> Any:
    from matplotlib.figure import Figure

    axes = Figure(figsize=(7, 4), layout="constrained").subplots()
    axes.set_title(title)
    return axes


def _save(axes: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    # Below the axes, where it covers nothing.
    axes.figure.legend(loc="outside lower center", ncols=5)
    axes.figure.savefig(file, dpi=100)
