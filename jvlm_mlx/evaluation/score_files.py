"""What an evaluation leaves behind: rows.jsonl, scores.json and report.md."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.json_file import parse_json
from ..errors import DataError
from ..files import atomic_file, reason
from .benchmarks import Benchmark, find_benchmark
from .cells import Row, index_of
from .intervals import Total, interval
from .judge import Judge
from .scoring import add_up, score, score_rotations
from .totals import Scored, Totals

ROWS, SCORES, REPORT = "rows.jsonl", "scores.json", "report.md"

_KEPT = ("index", "answer", "split", "category", "l2-category", "image_path", "choices")
"""Cells that are written with a score: all that figures can be computed from again."""
_JUDGED = "judge"
"""The scorer of benchmarks that need a judge."""
_RUN, _SPLITS, _INTERVALS = "run", "splits", "intervals"

Named = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """A folder that an evaluation wrote."""

    folder: Path
    benchmark: Benchmark
    settings: Mapping[str, Any]
    """What scores.json says about the run: model, prompts, notes, ..."""
    questions: list[Scored]

    @property
    def name(self) -> str:
        """How the run is called in tables."""
        return self.folder.name or str(self.folder.resolve().name)


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
    judged = judge.score if judge and benchmark.scorer == _JUDGED else None
    if benchmark.scorer != _JUDGED:
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
    content = _scores(benchmark, totals, everything, seed)
    rows = questions or [Scored(row, text, "", float("nan")) for row, text in answers]
    _write(output, benchmark, content, rows, details or {})
    return content


def _scores(
    benchmark: Benchmark, totals: Totals, settings: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """Return the content of scores.json: figures by name, then splits, intervals and the run."""
    splits = {name: _values(line) for name, line in totals.splits.items()}
    return {
        **_values(totals.named),
        _SPLITS: splits,
        _INTERVALS: {
            **_intervals(totals.named, "", seed),
            _SPLITS: {
                name: _intervals(line, f"{name}/", seed) for name, line in totals.splits.items()
            },
        },
        _RUN: {"benchmark": benchmark.name, "unit": benchmark.unit, "main": benchmark.main}
        | dict(settings),
    }


def _values(named: Mapping[str, Total | dict[str, Total]]) -> dict[str, Any]:
    return {
        name: _values(total) if isinstance(total, dict) else _number(total.value)
        for name, total in named.items()
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _intervals(
    named: Mapping[str, Total | dict[str, Total]], prefix: str, seed: int
) -> dict[str, Any]:
    return {
        name: (
            _intervals(total, f"{prefix}{name}/", seed)
            if isinstance(total, dict)
            else interval(total.draws(f"{prefix}{name}", seed))
        )
        for name, total in named.items()
    }


def _write(
    folder: Path,
    benchmark: Benchmark,
    content: Mapping[str, Any],
    questions: Sequence[Scored],
    details: Mapping[str, Named],
) -> None:
    """Write rows.jsonl, scores.json and report.md, each as a whole.

    The score of a question is NaN where there is none; `details` tell more about each by its index
    as text: the digest of its prompt, ...

    Raises:
        DataError: the folder cannot be written.
    """
    files = {
        ROWS: "".join(_row_line(question, details) for question in questions),
        REPORT: _report(benchmark, content, len(questions)),
        # The last one: where it is, the others are complete.
        SCORES: json.dumps(content, ensure_ascii=False, indent=2) + "\n",
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be made: {reason(error)}") from error
    for name, text in files.items():
        with atomic_file(folder / name, DataError) as temporary:
            temporary.write_text(text, "utf-8", errors="replace")


def _row_line(question: Scored, details: Mapping[str, Named]) -> str:
    index = index_of(question.row)
    content: dict[str, Any] = {
        "index": question.row["index"],
        **details.get(index, {}),
        "prediction": question.prediction,
        "extracted": question.extracted,
        "score": _number(question.score),
    }
    kept = {name: question.row[name] for name in _KEPT if question.row.get(name) is not None}
    return json.dumps({**content, **kept}, ensure_ascii=False) + "\n"


def _report(benchmark: Benchmark, content: Mapping[str, Any], questions: int) -> str:
    """Return report.md: the figures as tables, and what to know about them."""
    run = content[_RUN]
    unit = "points" if benchmark.unit == "points" else "%"
    lines = [f"# {benchmark.name}", "", f"{questions} questions, figures in {unit}."]
    lines += [f"- {name}: {value}" for name, value in run.items() if _is_said(name, value)]
    lines += [f"- {note}" for note in run.get("notes", [])]
    lines += ["", "| | score | 95 % interval | published |", "|---|---:|---:|---:|"]
    named = {k: v for k, v in content.items() if k not in (_SPLITS, _INTERVALS, _RUN)}
    for name, value in named.items():
        if not isinstance(value, dict):
            published = benchmark.published.get(name)
            bounds = content[_INTERVALS].get(name)
            lines.append(f"| {name} | {_shown(value)} | {_bounds(bounds)} | {_shown(published)} |")
    for split, line in content[_SPLITS].items():
        bounds_of = content[_INTERVALS][_SPLITS][split]
        lines += ["", f"## {split}", "", "| | score | 95 % interval |", "|---|---:|---:|"]
        lines += [
            f"| {name} | {_shown(value)} | {_bounds(bounds_of.get(name))} |"
            for name, value in line.items()
        ]
    return "\n".join(lines) + "\n"


def _is_said(name: str, value: Any) -> bool:
    return name not in ("notes", "benchmark", "unit", "questions", "main") and value is not None


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _bounds(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f"{bounds[0]:.1f} to {bounds[1]:.1f}"


def read_run(folder: Path) -> Run:
    """Return what an evaluation left in a folder.

    Raises:
        DataError: it left nothing there, or its files were changed.
    """
    try:
        settings = parse_json((folder / SCORES).read_text("utf-8"))[_RUN]
        benchmark = find_benchmark(settings["benchmark"])
        rows = [parse_json(line) for line in (folder / ROWS).read_text("utf-8").splitlines()]
        questions = [
            Scored(row, row["prediction"], row["extracted"], float(row["score"]))
            for row in rows
            if row["score"] is not None
        ]
    except OSError as error:
        raise DataError(
            f"{folder} is no folder of an evaluation: {Path(error.filename or folder).name}"
            f" cannot be read: {error.strerror}"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder}: its files are not those of an evaluation: {error}") from error
    return Run(folder, benchmark, settings, questions)
