"""Scores of a model on the paper's benchmarks: `jvlm evaluate`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import DataError, RequestError
from .evaluation import score_files
from .evaluation.benchmarks import Benchmark, find_benchmark
from .evaluation.cells import Row
from .evaluation.judge import Judge
from .evaluation.paired import Comparison, compare_runs
from .evaluation.prediction_files import PREDICTION, read_rows
from .evaluation.scoring import (
    add_up,
    incomplete_pairs,
    missing_rotations,
    needed_columns,
    score,
    score_rotations,
)
from .evaluation.totals import Scored, Totals

JUDGED = "judge"
"""The scorer of benchmarks that need a judge."""


def score_predictions(
    benchmark: str,
    predictions: str | Path,
    output: str | Path,
    *,
    data: str | Path | None = None,
    judge: Judge | None = None,
    seed: int = 0,
    allow_missing_rotations: bool = False,
) -> dict[str, Any]:
    """Score predictions that were made anywhere, and write rows.jsonl, scores.json and report.md.

    Args:
        benchmark: name, such as DocVQA_VAL.
        predictions: a TSV, JSON Lines, Excel or Parquet file with columns `index` and
            `prediction`, and the benchmark's own unless `data` has them.
        output: folder for the results.
        data: the benchmark's file, joined by `index`.
        judge: who decides about CharXiv and MathVista; without one they are left out.
        seed: of the bootstrap.
        allow_missing_rotations: whether a circular question's missing rotations count as right.

    Returns:
        The content of scores.json: figures on the published scale by their published names.

    Raises:
        RequestError: no such benchmark.
        DataError: a file cannot be used.
    """
    found = find_benchmark(benchmark)
    rows, notes = _joined(Path(predictions), Path(data) if data else None)
    check_rows(found, rows, str(predictions), allow_missing_rotations)
    return write_scores(
        found,
        [(row, prediction_of(row)) for row in rows],
        Path(output),
        settings={"predictions": str(predictions)},
        notes=notes,
        judge=judge,
        seed=seed,
    )


def prediction_of(row: Row) -> str:
    """Return the prediction in a row; a missing one is an empty answer."""
    prediction = row.get(PREDICTION)
    return "" if prediction is None else str(prediction)


def _joined(predictions: Path, data: Path | None) -> tuple[list[Row], list[str]]:
    rows, places = read_rows(predictions)
    for name in ("index", PREDICTION):
        if not any(name in row for row in rows):
            raise DataError(f"{predictions}: no column {name}")
    first: dict[str, str] = {}
    for row, place in zip(rows, places, strict=True):
        if row.get("index") is None:
            raise DataError(f"{predictions}, {place}, column index: nothing there")
        before = first.setdefault(score_files.index_of(row), place)
        if before != place:
            raise DataError(
                f"{predictions}, {place}, column index: {row['index']} is that of {before} too"
            )
    if data is None:
        return rows, []
    questions, _ = read_rows(data)
    known = {score_files.index_of(row): row for row in questions if row.get("index") is not None}
    unknown = [index for index in first if index not in known]
    if unknown:
        raise DataError(
            f"{predictions}, {first[unknown[0]]}, column index: {data} has no question {unknown[0]}"
        )
    missing = len(known) - len(rows)
    notes = [f"{missing} of {len(known)} questions have no prediction and do not count"]
    joined: list[Row] = [{**known[score_files.index_of(row)], PREDICTION: row.get(PREDICTION)} for row in rows]
    return joined, notes if missing else []


def check_rows(
    benchmark: Benchmark, rows: Sequence[Row], source: str, allow_missing_rotations: bool
) -> None:
    """Refuse rows that cannot be scored.

    Raises:
        DataError: columns, rotations or questions are missing.
    """
    missing = [name for name in needed_columns(benchmark) if not any(name in row for row in rows)]
    if missing:
        raise DataError(
            f"{source}: no column {', '.join(missing)}; give the benchmark's own file with --data"
        )
    problems = []
    if benchmark.circular and not allow_missing_rotations:
        problems = missing_rotations(rows)
    elif benchmark.totals == "mme":
        problems = incomplete_pairs(rows)
    if problems:
        more = [f"and {len(problems) - 20} more"] if len(problems) > 20 else []
        hint = "; --allow-missing-rotations counts them as right" if benchmark.circular else ""
        raise DataError("\n  ".join([f"{source} is incomplete{hint}:", *problems[:20], *more]))


def write_scores(
    benchmark: Benchmark,
    answers: Sequence[tuple[Row, str]],
    output: Path,
    *,
    settings: Mapping[str, Any],
    notes: Sequence[str] = (),
    details: Mapping[str, Mapping[str, Any]] | None = None,
    judge: Judge | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Score answers, write the three files of an evaluation, and return the content of scores.json.

    Raises:
        DataError: the folder cannot be written, or a row cannot be scored.
        RequestError: the judge cannot be asked.
    """
    notes = list(notes)
    judged = judge.score if judge and benchmark.scorer == JUDGED else None
    if benchmark.scorer != JUDGED:
        questions = [score(benchmark, row, prediction) for row, prediction in answers]
    elif judged:
        questions = [Scored(row, text, *judged(row, text)) for row, text in answers]
    else:
        questions = []
        notes.append(
            f"{benchmark.name} is scored by a judge model and none was given (--judge URL): the"
            " answers are written, the scores are left out"
        )
    if benchmark.circular:
        questions = score_rotations(questions)
    everything = {"questions": len(answers), "seed": seed, **settings, "notes": notes}
    if judge and judged:
        everything["judge"] = f"{judge.model} at {judge.url}"
    totals = add_up(benchmark, questions) if questions else Totals({})
    content = score_files.scores(benchmark, totals, everything, seed)
    rows = questions or [Scored(row, text, "", float("nan")) for row, text in answers]
    score_files.write(output, benchmark, content, rows, details or {})
    return content


def compare(folders: Sequence[str | Path], *, seed: int = 0) -> list[Comparison]:
    """Compare runs that `jvlm evaluate` wrote with the first of the same benchmark.

    Raises:
        DataError: a folder holds no run.
        RequestError: there is nothing to compare.
    """
    if not folders:
        raise RequestError("compare: give the folders of one or more runs")
    return compare_runs([score_files.read_run(Path(folder)) for folder in folders], seed)
