"""What the terminal shows of results: one kind of table, one style of chart, one summary."""

import json
import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ..errors import JvlmError, RequestError
from ..files import atomic_file
from ..generation.response import Counts
from ..units import plural

_FIGURE_SIZE = (8.0, 4.5)
_DPI = 150
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but newline and tab, overrides of the writing direction, lone surrogates."""


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[object]],
    left: Collection[int] = (0,),
    *,
    markdown: bool = False,
) -> str:
    """Return rows of cells as aligned columns.

    Args:
        head: titles.
        rows: cells, as many in each row as there are titles.
        left: indices of the columns that are aligned left, text usually; numbers end in line.
        markdown: for a document rather than the terminal.
    """
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(3 if markdown else 0, *map(len, column)) for column in zip(*cells, strict=True)]
    rule = [
        "-" * (width - 1) + ":" if markdown and index not in left else "-" * width
        for index, width in enumerate(widths)
    ]
    lines = []
    for row in (cells[0], rule, *cells[1:]):
        padded = [
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(padded)} |" if markdown else "  ".join(padded).rstrip())
    return "\n".join(lines)


def printable(text: str) -> str:
    """Return text without what a terminal would obey: control characters are escaped.

    Names and messages may come from files of strangers. Newlines and tabs stay.
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def json_line(content: object) -> str:
    """Return one line of JSON that standard output can take, whatever its encoding."""
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "")
    return json.dumps(content, ensure_ascii=encoding != "utf8", allow_nan=False)


def new_figure(what: str) -> Any:
    """Return an empty figure of matplotlib, which is an optional extra.

    Args:
        what: is drawn; also the flag that asks for it.

    Raises:
        RequestError: matplotlib is not installed.
    """
    try:
        # Not pyplot, which would choose a window system and keep a global state.
        from matplotlib.figure import Figure
    except ImportError:
        raise RequestError(
            f"a {what} needs matplotlib: pip install 'jvlm-mlx[plot]', or leave out --{what}"
        ) from None
    return Figure(figsize=_FIGURE_SIZE, layout="constrained")


def style_axes(axes: Any, title: str | None = None, **labels: Any) -> None:
    """Give axes the style of all charts: a light grid behind the data, no frame, a legend below.

    Args:
        axes: with everything drawn.
        title: above them.
        **labels: `xlabel` and `ylabel` with units, `xscale`, `yscale`, ... as for `Axes.set`.
    """
    axes.set(**labels)
    if title:
        axes.set_title(title)
    axes.grid(visible=True, color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    handles, names = axes.get_legend_handles_labels()
    if handles:
        axes.figure.legend(
            handles, names, loc="outside lower center", ncols=len(names), frameon=False
        )


def save_figure(figure: Any, file: Path, error_type: type[JvlmError]) -> None:
    """Write a figure, a PNG unless its name says otherwise.

    Raises:
        JvlmError: of the given type; the file cannot be written.
    """
    with atomic_file(file, error_type, suffix=file.suffix or ".png") as temporary:
        figure.savefig(temporary, dpi=_DPI)


def summarize(counts: Counts) -> str:
    """Return what `--verbose` and `/stats` show of an answer: sizes and speeds."""
    prompt = f"prompt: {counts.prompt_tokens} tokens"
    if counts.tiles:
        tiles = ", ".join(map(str, counts.tiles))
        images = plural(len(counts.tiles), "image")
        prompt += f", {counts.image_tokens} of them in {images} of {tiles} tiles"
    if counts.cached_tokens:
        prompt += f", {counts.cached_tokens} cached"
    return "\n".join(
        (
            f"{prompt}, {counts.prompt_tps:.1f} tokens/s",
            f"first token after {counts.first_token_seconds:.2f} s,"
            f" {counts.image_seconds:.2f} s of it for images",
            f"answer: {counts.generation_tokens} tokens, {counts.generation_tps:.1f} tokens/s,"
            f" ended by {counts.finish_reason}",
            f"peak memory: {counts.peak_memory:.2f} GB",
        )
    )
