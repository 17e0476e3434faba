"""Runs of one benchmark side by side: paired differences, intervals, a sign test, changed rows."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import RequestError
from .benchmarks import Benchmark
from .cells import index_of
from .intervals import Array, interval, sign_test
from .score_files import Run
from .scoring import ROTATION, add_up
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
    """Compare runs, of one benchmark or of several, with the first of the same benchmark.

    Raises:
        RequestError: two runs of a benchmark have no question in common.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.benchmark.name, []).append(run)
    return [_compare(group[0].benchmark, group, seed) for group in groups.values()]


@dataclass(frozen=True)
class _Measured:
    """A run on the questions that all runs have."""

    run: Run
    questions: list[Scored]
    """In the same order in every run."""
    value: float
    draws: Array
    """The same name and seed resample the same questions, so draws can be subtracted."""


def _compare(benchmark: Benchmark, runs: Sequence[Run], seed: int) -> Comparison:
    by_index = [{index_of(q.row): q for q in run.questions} for run in runs]
    indices = [set(questions) for questions in by_index]
    common = set.intersection(*indices)
    if not common:
        raise RequestError(
            f"{', '.join(str(run.folder) for run in runs)}: no question of {benchmark.name} is"
            " in all of them"
        )
    order = [index for index in by_index[0] if index in common]
    measured = [
        _measure(benchmark, run, [questions[index] for index in order], seed)
        for run, questions in zip(runs, by_index, strict=True)
    ]
    return Comparison(
        benchmark=benchmark.name,
        figure=benchmark.main,
        unit=benchmark.unit,
        questions=len(order),
        left_out=len(set.union(*indices)) - len(common),
        published=benchmark.published.get(benchmark.main),
        sides=[_side(benchmark, one, measured[0]) for one in measured],
    )


def _measure(benchmark: Benchmark, run: Run, questions: list[Scored], seed: int) -> _Measured:
    total = add_up(benchmark, questions).named.get(benchmark.main)
    if total is None or isinstance(total, dict):
        raise RequestError(f"{run.folder}: {benchmark.name} has no figure {benchmark.main} here")
    return _Measured(run, questions, total.value, total.draws(benchmark.main, seed))


def _side(benchmark: Benchmark, one: _Measured, first: _Measured) -> Side:
    is_first = one is first
    pairs = [] if is_first else _pairs(benchmark, one, first)
    better = sum(new.score > old.score for old, new in pairs)
    worse = sum(new.score < old.score for old, new in pairs)
    return Side(
        run=one.run.name,
        score=one.value,
        interval=interval(one.draws),
        difference=None if is_first else one.value - first.value,
        difference_interval=None if is_first else interval(one.draws - first.draws),
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


def _pairs(benchmark: Benchmark, one: _Measured, first: _Measured) -> list[tuple[Scored, Scored]]:
    pairs = zip(first.questions, one.questions, strict=True)
    if benchmark.circular:  # rotations are one question
        return [pair for pair in pairs if int(index_of(pair[0].row)) < ROTATION]
    return list(pairs)
