"""Runs of one benchmark side by side: paired differences, intervals, a sign test, changed rows."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import RequestError
from .benchmarks import Benchmark
from .intervals import Total, interval, sign_test
from .score_files import Run, index_of, totals_of
from .scoring import ROTATION
from .totals import Scored


@dataclass(frozen=True)
class Side:
    """One run, and how it differs from the first on the questions that all runs have."""

    run: str
    score: float
    """The benchmark's main figure, over the common questions."""
    interval: list[float] | None
    difference: float | None
    """None for the first run."""
    difference_interval: list[float] | None
    better: int
    """Questions with a higher score than in the first run."""
    worse: int
    p: float
    """Two-sided p value of the sign test on these."""
    changed: list[dict[str, Any]]
    """Questions whose prediction differs: index, both predictions and scores."""


@dataclass(frozen=True)
class Comparison:
    """Runs of one benchmark."""

    benchmark: str
    figure: str
    unit: str
    questions: int
    left_out: int
    """Questions that some run lacks."""
    published: float | None
    sides: list[Side]

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return asdict(self)


def compare_runs(runs: Sequence[Run], seed: int = 0) -> list[Comparison]:
    """Compare runs with the first of the same benchmark.

    Args:
        runs: as `read_run` returns them; of one benchmark or of several.
        seed: of the bootstrap.

    Raises:
        RequestError: two runs of a benchmark have no question in common.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.benchmark.name, []).append(run)
    return [_compare(group[0].benchmark, group, seed) for group in groups.values()]


def _compare(benchmark: Benchmark, runs: Sequence[Run], seed: int) -> Comparison:
    indices = [{index_of(q.row) for q in run.questions} for run in runs]
    common = set.intersection(*indices)
    if not common:
        raise RequestError(
            f"{', '.join(str(run.folder) for run in runs)}: no question of {benchmark.name} is"
            " in all of them"
        )
    order = [index_of(q.row) for q in runs[0].questions if index_of(q.row) in common]
    sides = [_side(benchmark, run, runs[0], order, seed) for run in runs]
    return Comparison(
        benchmark=benchmark.name,
        figure=benchmark.main,
        unit=benchmark.unit,
        questions=len(order),
        left_out=len(set.union(*indices)) - len(common),
        published=benchmark.published.get(benchmark.main),
        sides=sides,
    )


def _side(benchmark: Benchmark, run: Run, first: Run, order: Sequence[str], seed: int) -> Side:
    total, base = _main(benchmark, run, order), _main(benchmark, first, order)
    draws = total.draws(benchmark.main, seed)
    difference = None if run is first else total.value - base.value
    # The same name and seed resample the same questions, so draws can be subtracted.
    paired = None if run is first else interval(draws - base.draws(benchmark.main, seed))
    pairs = [] if run is first else _pairs(benchmark, run, first, order)
    better = sum(new.score > old.score for old, new in pairs)
    worse = sum(new.score < old.score for old, new in pairs)
    return Side(
        run=run.name,
        score=total.value,
        interval=interval(draws),
        difference=difference,
        difference_interval=paired,
        better=better,
        worse=worse,
        p=sign_test(better, worse),
        changed=[
            {
                "index": new.row["index"],
                "answer": new.row.get("answer"),
                "predictions": [old.prediction, new.prediction],
                "scores": [old.score, new.score],
            }
            for old, new in pairs
            if old.prediction != new.prediction or old.score != new.score
        ],
    )


def _main(benchmark: Benchmark, run: Run, order: Sequence[str]) -> Total:
    total = totals_of(run, order).named.get(benchmark.main)
    if total is None or isinstance(total, dict):
        raise RequestError(f"{run.folder}: {benchmark.name} has no figure {benchmark.main} here")
    return total


def _pairs(
    benchmark: Benchmark, run: Run, first: Run, order: Sequence[str]
) -> list[tuple[Scored, Scored]]:
    old = {index_of(q.row): q for q in first.questions}
    new = {index_of(q.row): q for q in run.questions}
    if benchmark.circular:  # rotations are one question
        order = [index for index in order if int(index) < ROTATION]
    return [(old[index], new[index]) for index in order]
