"""JSON lines and charts; tables are those of the command line."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jvlm_mlx.cli.formatting import new_figure, save_figure, style_axes, table
from jvlm_mlx.errors import RequestError

markdown_table = partial(table, markdown=True)


def json_line(benchmark: str, content: dict[str, Any]) -> str:
    """Return one line of JSON, for collecting runs in a file."""
    return json.dumps({"benchmark": benchmark, **content}, ensure_ascii=False)


def bar_chart(
    file: Path, title: str, unit: str, labels: Sequence[str], bars: Mapping[str, Sequence[float]]
) -> None:
    """Write a PNG of bars side by side; needs matplotlib (the extra `plot`)."""
    axes = new_figure("chart").subplots()
    height = 0.8 / len(bars)
    for number, (name, values) in enumerate(bars.items()):
        offsets = [index + number * height for index in range(len(labels))]
        axes.barh(offsets, values, height, label=name)
    axes.set_yticks([index + 0.4 - height / 2 for index in range(len(labels))], labels)
    axes.invert_yaxis()
    _save(axes, file, title, xlabel=unit)


def line_chart(
    file: Path,
    title: str,
    x_label: str,
    y_label: str,
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
) -> None:
    """Write a PNG of lines (x values, y values); needs matplotlib (the extra `plot`)."""
    axes = new_figure("chart").subplots()
    for name, (x, y) in lines.items():
        axes.plot(x, y, marker="o", label=name)
    _save(axes, file, title, xlabel=x_label, ylabel=y_label, ylim=(0, None))


def _save(axes: Any, file: Path, title: str, **labels: Any) -> None:
    style_axes(axes, title, **labels)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_figure(axes.figure, file, RequestError)
