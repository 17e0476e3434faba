"""Charts: one size and style, nothing cut off, what is small can be seen, and no hindsight."""

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import ablations, draw, stages
from benchmarks.harness import charts
from benchmarks.harness.charts import Estimate
from benchmarks.harness.timing import readable_seconds
from jvlm_mlx.cli import charts as cli_charts

pytest.importorskip("matplotlib")
FOLDER = Path(draw.__file__).parent / "charts"
LINES = [json.loads(text) for text in (FOLDER / "figures.jsonl").read_text().splitlines()]
SIZE = 1200, 675


@pytest.fixture
def figures(monkeypatch):
    """Charts that would be written, by the names of their files."""
    found = {}

    def keep(figure, file, _):
        found[file.name] = figure

    monkeypatch.setattr(charts, "save_figure", keep)
    monkeypatch.setattr(cli_charts, "save_figure", keep)
    return found


def draw_stored(benchmark, folder):
    lines = [line for line in LINES if line["benchmark"] == benchmark]
    importlib.import_module(f"benchmarks.{benchmark}").draw(lines, folder)


def exact(value):
    return Estimate(value, value, value)


def test_all_charts_are_drawn_from_stored_lines_in_one_size(tmp_path):
    draw.main([str(FOLDER / "figures.jsonl"), "--chart", str(tmp_path / "charts")])
    drawn = sorted((tmp_path / "charts").iterdir())
    assert len(drawn) >= len({line["benchmark"] for line in LINES})
    for file in [*drawn, *FOLDER.glob("*.png")]:
        if file.name == "explained.png":  # no chart, but what a command writes
            continue
        with Image.open(file) as image:
            assert image.size == SIZE, file
        assert (FOLDER / file.name).exists()


@pytest.mark.parametrize("benchmark", sorted({line["benchmark"] for line in LINES}))
def test_titles_and_axes_begin_with_a_capital_and_name_units(benchmark, figures, tmp_path):
    draw_stored(benchmark, tmp_path)
    for figure in figures.values():
        (axes,) = figure.axes
        texts = [axes.get_title(), axes.get_xlabel(), axes.get_ylabel()]
        assert texts[0]
        assert all(text[0].isupper() for text in texts if text), texts
        assert re.search(r"%|[Ss]econd", " ".join(texts))


@pytest.mark.parametrize(("sizes", "values"), [((128, 512, 2048), (9.0, 8.0, 8.5)),
                                               ((1, 2, 8), (1.0, 2.2, 9.0))])  # fmt: skip
def test_no_point_of_a_line_is_cut_off(figures, sizes, values):
    line = {"measured": (sizes, [Estimate(value, value, value + 1) for value in values])}
    charts.line_chart(Path("a.png"), "Title", "Size", "Seconds", line)
    (axes,) = figures["a.png"].axes
    bottom, top = axes.get_ylim()
    assert bottom == 0
    assert top >= 1.09 * (max(values) + 1)
    assert axes.get_xlim()[0] == 0
    (proportion,) = (one for one in axes.lines if one.get_label() == "in proportion")
    slopes = {values[0] / sizes[0]} | set(proportion.get_ydata()[1:] / proportion.get_xdata()[1:])
    assert np.ptp(list(slopes)) == pytest.approx(0)


def test_small_bars_can_be_seen(figures, tmp_path):
    """Stages differ by four orders of magnitude: each bar has a width, its value and its range."""
    draw_stored("stages", tmp_path)
    (axes,) = figures["stages-5-tiles.png"].axes
    figures["stages-5-tiles.png"].canvas.draw()
    widths = [bar.get_window_extent().width for bars in axes.containers for bar in bars
              if hasattr(bar, "get_width")]  # fmt: skip
    assert len(widths) == 2 * len(stages.STAGES)
    assert min(widths) > 0.05 * axes.bbox.width
    (line,) = (one for one in LINES if one["benchmark"] == "stages")
    merges = {readable_seconds(line[name]["merge"]["seconds"]) for name in ("jvlm-mlx", "mlx-vlm")}
    assert merges <= {text.get_text() for text in axes.texts}


def test_ranges_of_repeats_are_error_bars():
    found = Estimate.of_timing({"seconds": 2.0, "fastest": 1.5, "spread": 0.5})
    assert found == (2.0, 1.5, 2.5, "2 s")


def test_what_chance_explains_is_marked(figures, tmp_path):
    draw_stored("ablations", tmp_path)
    (axes,) = figures["ablations.png"].axes
    _, names = axes.get_legend_handles_labels()
    assert {"what another seed changes", "images, seed 0", "images, seed 1", "text"} == set(names)
    low, _ = axes.get_xlim()
    assert low > 70  # differences of a point can be seen
    line = {"examples": 200, "variants": {"one": {"image_accuracy": 0.866}}}
    (one, none) = ablations._estimates(line, ["one", "other"], "image_accuracy", 10)
    assert (one.low, one.high) == pytest.approx((85.04, 88.02), abs=0.01)  # Wilson's interval
    assert none is None


def test_a_heat_map_has_every_number(figures):
    charts.heat_map(Path("h.png"), "Title", ["a", "b"], ["x"], [[12.34], [100.0]])
    (axes,) = figures["h.png"].axes
    assert [text.get_text() for text in axes.texts] == ["12.3", "100.0"]


def test_losses_are_smoothed_without_hindsight():
    losses = [5.0] * 100 + [1.0] * 100
    smoothed = cli_charts._smooth(losses)
    assert (smoothed[:100] == 5).all()  # a centered mean would sink before the drop
    assert (np.diff(smoothed[99:]) <= 0).all()
    assert smoothed[-1] == pytest.approx(1)
    assert smoothed[100] == pytest.approx(5 - 4 / (200 // 25 + 1))


def test_runs_follow_one_another_with_marked_borders(figures, tmp_path):
    runs = {}
    for name, losses in (("pages", [6.0, 3.0]), ("empty", []), ("stage 1", [4.0, 0.1])):
        runs[name] = tmp_path / f"{name}.jsonl"
        runs[name].write_text(
            "".join(
                f'{{"step": {10 * (at + 1)}, "loss": {loss}}}\n' for at, loss in enumerate(losses)
            )
        )
    draw.main(["--runs", *(f"{name}={file}" for name, file in runs.items()),
               "--chart", str(tmp_path)])  # fmt: skip
    (axes,) = figures["demo-training.png"].axes
    assert [text.get_text() for text in axes.texts] == ["pages", "stage 1"]
    borders = [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 2
               and line.get_xdata()[0] == line.get_xdata()[1]]  # fmt: skip
    assert borders == [0, 20]
    (smoothed, after) = (line.get_xdata() for line in axes.lines[1::3])
    assert (list(smoothed), list(after)) == ([10, 20], [30, 40])
    assert axes.get_yscale() == "log"
