"""Scoring alone: predictions that were made anywhere, by this package or by another."""

from pathlib import Path
from typing import Any

from ..errors import DataError
from .benchmarks import find_benchmark
from .cells import Row, index_of
from .judge import Judge
from .prediction_files import PREDICTION, read_rows
from .score_files import write_scores
from .scoring import check_rows


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
    notes = []
    if not any(PREDICTION in row for row in rows):
        raise DataError(f"{predictions}: no column {PREDICTION}")
    if not any("index" in row for row in rows):
        rows = [{"index": number, **row} for number, row in enumerate(rows)]
        notes.append("the predictions have no column index: they are numbered from 0")
    first: dict[str, str] = {}
    for row, place in zip(rows, places, strict=True):
        if row.get("index") is None:
            raise DataError(f"{predictions}, {place}, column index: nothing there")
        before = first.setdefault(index_of(row), place)
        if before != place:
            raise DataError(
                f"{predictions}, {place}, column index: {row['index']} is that of {before} too"
            )
    if data is None:
        return rows, notes
    questions, _ = read_rows(data)
    known = {index_of(row): row for row in questions if row.get("index") is not None}
    unknown = [index for index in first if index not in known]
    if unknown:
        raise DataError(
            f"{predictions}, {first[unknown[0]]}, column index: {data} has no question {unknown[0]}"
        )
    missing = len(known) - len(rows)
    if missing:
        notes.append(f"{missing} of {len(known)} questions have no prediction and do not count")
    joined: list[Row] = [{**known[index_of(row)], PREDICTION: row.get(PREDICTION)} for row in rows]
    return joined, notes
