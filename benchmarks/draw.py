"""Draws charts from the JSON lines that benchmarks print, without measuring again.

    python -m benchmarks.draw benchmarks/charts/figures.jsonl --chart benchmarks/charts
    python -m benchmarks.draw --runs "stage 1=A/training/metrics.jsonl" "stage 2=B/training/..." \\
        --chart benchmarks/charts                                   # demo-training.png

Of several lines of a benchmark, the last counts, or each has its place in the chart (stages by the
number of tiles, ablations by seed).
"""

import argparse
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jvlm_mlx.cli.charts import write_chart


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, nargs="*", help="JSON lines")
    parser.add_argument(
        "--runs", nargs="+", default=[], metavar="NAME=METRICS", help="training runs, in order"
    )
    parser.add_argument("--chart", type=Path, metavar="DIR", required=True, help="folder for PNGs")
    options = parser.parse_args(arguments)
    lines: dict[str, list[dict[str, Any]]] = {}
    for file in options.file:
        for text in file.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            lines.setdefault(line["benchmark"], []).append(line)
    if options.runs:
        named = (run.partition("=") for run in options.runs)
        runs = {name: Path(metrics) for name, _, metrics in named}
        options.chart.mkdir(parents=True, exist_ok=True)
        write_chart(runs, options.chart / "demo-training.png")
    for benchmark, own in lines.items():
        module = importlib.import_module(f"benchmarks.{benchmark}")
        if hasattr(module, "draw"):  # others have tables alone
            module.draw(own, options.chart)


if __name__ == "__main__":
    main()
