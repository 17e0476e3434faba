"""Bootstrap intervals, paired differences and the sign test."""

import json

import numpy as np
import pytest

from jvlm_mlx.errors import RequestError
from jvlm_mlx.evaluate import compare, score_predictions
from jvlm_mlx.evaluation.intervals import Combined, count, interval, percent, sign_test
from tests.helpers.evaluation_files import SCORING, write_jsonl


def test_an_interval_is_that_of_the_mean():
    scores = np.random.default_rng(0).random(400) < 0.7
    total = percent(scores)

    low, high = interval(total.draws("Overall", 0))

    error = 100 * np.sqrt(0.7 * 0.3 / 400)
    assert total.value == pytest.approx(100 * scores.mean())
    assert low == pytest.approx(total.value - 1.96 * error, abs=error / 3)
    assert high == pytest.approx(total.value + 1.96 * error, abs=error / 3)


def test_draws_are_repeatable_and_differ_by_name_and_seed():
    total = percent([0, 1, 1, 0, 1, 1, 1])

    assert np.array_equal(total.draws("a", 0), total.draws("a", 0))
    assert not np.array_equal(total.draws("a", 0), total.draws("b", 0))
    assert not np.array_equal(total.draws("a", 0), total.draws("a", 1))


def test_points_are_resampled_as_sums():
    low, high = interval(count([1] * 50 + [0] * 50).draws("x", 0))

    assert 35 < low < 45 < 55 < high < 65


def test_combined_figures_resample_their_parts_apart():
    same = percent([0, 1] * 50)
    combined = Combined([same, same], mean=True)

    assert combined.value == 50
    # Two draws that vary apart vary less together.
    assert combined.draws("x", 0).std() == pytest.approx(same.draws("y", 0).std() / 2**0.5, rel=0.1)
    assert Combined([same, same], mean=False).value == 100


def test_nothing_measured_has_no_interval():
    assert np.isnan(percent([]).value)
    assert interval(percent([]).draws("x", 0)) is None


@pytest.mark.parametrize(
    ("better", "worse", "p"),
    [(0, 0, 1), (1, 1, 1), (5, 0, 2 / 32), (0, 5, 2 / 32), (8, 2, 2 * 56 / 1024), (3, 3, 1)],
)
def test_sign_test(better, worse, p):
    assert sign_test(better, worse) == pytest.approx(p)


def score_run(folder, benchmark, rows, predictions):
    rows = [{**row, "prediction": said} for row, said in zip(rows, predictions, strict=True)]
    path = write_jsonl(folder.with_suffix(".jsonl"), rows)
    score_predictions(benchmark, path, folder)
    return folder


CHOICES = [{"index": n, "A": "x", "B": "y", "answer": "A", "split": "val"} for n in range(40)]


def test_runs_are_compared_question_by_question(tmp_path):
    base = score_run(tmp_path / "base", "AI2D_TEST", CHOICES, ["A"] * 20 + ["B"] * 20)
    other = score_run(tmp_path / "other", "AI2D_TEST", CHOICES, ["A"] * 25 + ["B"] * 14 + ["?"])
    less = score_run(tmp_path / "less", "AI2D_TEST", CHOICES[:39], ["B"] + ["A"] * 38)

    (comparison,) = compare([base, other, less])

    assert (comparison.questions, comparison.left_out) == (39, 1)
    first, second, third = comparison.sides
    assert first.difference is None
    assert (second.better, second.worse) == (5, 0)
    assert second.difference == pytest.approx(100 * 5 / 39)
    low, high = second.difference_interval
    assert 0 < low < second.difference < high
    # Paired: the interval is narrower than that of two runs apart.
    assert high - low < second.interval[1] - second.interval[0]
    assert second.p == pytest.approx(2 / 32)
    assert [change["index"] for change in second.changed] == [20, 21, 22, 23, 24]
    assert second.changed[0]["predictions"] == ["B", "A"]
    assert (third.better, third.worse) == (19, 1)


def test_a_run_equals_itself(tmp_path):
    run = score_run(tmp_path / "run", "AI2D_TEST", CHOICES, ["A", "B"] * 20)

    (comparison,) = compare([run, run])

    side = comparison.sides[1]
    assert (side.difference, side.difference_interval, side.p) == (0, [0, 0], 1)
    assert side.changed == []


@pytest.mark.parametrize(
    ("name", "benchmark", "figure"),
    [
        ("mme", "MME", "perception"),
        ("pope", "POPE", "Overall"),
        ("hallusionbench", "HallusionBench", "aAcc"),
        ("ocrbench", "OCRBench", "Final Score"),
        ("mmbench_circular", "MMBench_DEV_EN_V11", "Overall"),
        ("mmmu", "MMMU_DEV_VAL", "Overall"),
    ],
)
def test_every_kind_of_figure_is_compared_from_what_was_written(name, benchmark, figure, tmp_path):
    rows = SCORING[name]["rows"]
    predictions = [row["prediction"] for row in rows]
    base = score_run(tmp_path / "base", benchmark, rows, predictions)
    worse = score_run(tmp_path / "worse", benchmark, rows, ["?"] * 20 + predictions[20:])

    (comparison,) = compare([base, worse])

    written = [
        json.loads((folder / "scores.json").read_text("utf-8"))[figure] for folder in (base, worse)
    ]
    assert [side.score for side in comparison.sides] == pytest.approx(written)
    assert comparison.sides[1].better == 0
    assert comparison.sides[1].worse > 0


def test_runs_of_several_benchmarks_are_grouped(tmp_path):
    one = score_run(tmp_path / "one", "AI2D_TEST", CHOICES, ["A"] * 40)
    two = score_run(tmp_path / "two", "RealWorldQA", CHOICES, ["A"] * 40)

    comparisons = compare([one, two])

    assert [c.benchmark for c in comparisons] == ["AI2D_TEST", "RealWorldQA"]
    assert [c.published for c in comparisons] == [None, 68.2]


def test_runs_without_a_common_question_are_refused(tmp_path):
    one = score_run(tmp_path / "one", "AI2D_TEST", CHOICES[:5], ["A"] * 5)
    two = score_run(tmp_path / "two", "AI2D_TEST", CHOICES[5:], ["A"] * 35)

    with pytest.raises(RequestError, match="no question of AI2D_TEST is in all of them"):
        compare([one, two])
