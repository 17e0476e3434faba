"""Scores of predictions: each question by its benchmark's rule, then the figures of the whole."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain

from ..config.json_file import quoted
from ..errors import DataError
from . import totals
from .benchmarks import Benchmark
from .cells import LETTERS, OPTIONS, Row, is_given, list_of, options_of, text_of
from .multiple_choice import gold_place, letter_in, most_likely, option_of
from .open_answers import (
    anls,
    contains_answer,
    contains_multilingual,
    number_in,
    numbers_agree,
    relaxed_accuracy,
    vqa_accuracy,
    yes_or_no,
)
from .totals import Scored, Totals

ROTATION = 1_000_000
"""Rows of a circular benchmark whose indices agree modulo this are one question."""

Judged = tuple[str, float]
"""What was understood of an answer, and its score."""


def _choice(row: Row, prediction: str) -> Judged:
    option = option_of(prediction, options_of(row))
    return option or "", float(option == text_of(row["answer"]))


def _open_choice(row: Row, prediction: str) -> Judged:
    # MMMU: a question without options becomes one whose first option is the answer.
    answer = text_of(row["answer"])
    if not is_given(row, "A"):
        row = {**row, "A": answer, "B": "Other Answers"}
    expected = answer if answer in OPTIONS else "A"
    return _choice({**row, "answer": expected}, prediction)


def _yes_no(row: Row, prediction: str) -> Judged:
    said = yes_or_no(prediction)
    return said, float(said == text_of(row["answer"]))


def _open(rule: Callable[[str, Sequence[str]], float]) -> Callable[[Row, str], Judged]:
    return lambda row, prediction: (prediction.strip(), rule(prediction, list_of(row["answer"])))


def _ocrbench(row: Row, prediction: str) -> Judged:
    category = text_of(row["category"])
    return prediction.strip(), contains_answer(prediction, list_of(row["answer"]), category)


def _multilingual(row: Row, prediction: str) -> Judged:
    return prediction.strip(), contains_multilingual(prediction, text_of(row["answer"]))


def _likelihood(row: Row, prediction: str) -> Judged:
    place = most_likely(row, prediction, normalized=False)
    return LETTERS[place], float(place == gold_place(row))


def _normalized_likelihood(row: Row, prediction: str) -> Judged:
    place = most_likely(row, prediction, normalized=True)
    return LETTERS[place], float(place == gold_place(row))


def _gsm8k(row: Row, prediction: str) -> Judged:
    agrees = numbers_agree(prediction, text_of(row["answer"]), strict=True)
    return number_in(prediction, strict=True), float(agrees)


def _mmlu_pro(row: Row, prediction: str) -> Judged:
    letter = letter_in(prediction)
    return letter, float(letter == text_of(row["answer"]))


def _exact(row: Row, prediction: str) -> Judged:
    said = prediction.strip()
    return said, float(said in [answer.strip() for answer in list_of(row["answer"])])


SCORERS: dict[str, Callable[[Row, str], Judged]] = {
    "choice": _choice,
    "open_choice": _open_choice,
    "relaxed": _open(relaxed_accuracy),
    "anls": _open(anls),
    "vqa": _open(vqa_accuracy),
    "ocrbench": _ocrbench,
    "multilingual": _multilingual,
    "yes_no": _yes_no,
    "exact": _exact,
    "likelihood": _likelihood,
    "normalized_likelihood": _normalized_likelihood,
    "gsm8k": _gsm8k,
    "mmlu_pro": _mmlu_pro,
}
TOTALS: dict[str, totals.Aggregate] = {
    "accuracy": totals.accuracy,
    "mmt": totals.mmt,
    "multilingual": totals.multilingual,
    "ocrbench": totals.ocrbench,
    "mme": totals.mme,
    "pope": totals.pope,
    "hallusion": totals.hallusion,
    "endings": totals.endings,
    "gsm8k": totals.gsm8k,
}

_COLUMNS = {
    "ocrbench": ("category",),
    "mme": ("category", "image_path"),
    "multilingual": ("category",),
    "likelihood": ("choices",),
    "normalized_likelihood": ("choices",),
}
"""By rule, or by how scores add up."""


def needed_columns(benchmark: Benchmark) -> tuple[str, ...]:
    """Return the columns without which a benchmark cannot be scored."""
    wanted = (_COLUMNS.get(name, ()) for name in (benchmark.scorer, benchmark.totals))
    return tuple(dict.fromkeys(("index", "answer", *chain(*wanted))))


def score(benchmark: Benchmark, row: Row, prediction: str) -> Scored:
    """Return a question with its score."""
    extracted, value = SCORERS[benchmark.scorer](row, prediction)
    return Scored(row, prediction, extracted, value)


def add_up(benchmark: Benchmark, questions: Sequence[Scored]) -> Totals:
    """Return the figures of a benchmark. Of a circular one, each rotated question is a unit."""
    if benchmark.circular:
        questions = [q for q in questions if _number(q.row) < ROTATION]
    return TOTALS[benchmark.totals](questions, benchmark.reported_split)


def score_rotations(questions: Sequence[Scored]) -> list[Scored]:
    """Return questions whose score is 1 only if all rotations of theirs are right."""
    scores: dict[int, float] = defaultdict(lambda: 1.0)
    for question in questions:
        key = _number(question.row) % ROTATION
        scores[key] = min(scores[key], question.score)
    return [replace(q, score=scores[_number(q.row) % ROTATION]) for q in questions]


def missing_rotations(rows: Sequence[Row]) -> list[str]:
    """Return what is missing, a line each: a circular question has a rotation for each option."""
    groups: dict[int, dict[int, Row]] = defaultdict(dict)
    for row in rows:
        number = _number(row)
        groups[number % ROTATION][number // ROTATION] = row
    problems = []
    for index, rotations in groups.items():
        wanted = max(len(options_of(row)) for row in rotations.values())
        absent = [n * ROTATION + index for n in range(wanted) if n not in rotations]
        if absent:
            problems.append(
                f"question {index}: {wanted} options need {wanted} rotations;"
                f" missing: {', '.join(map(str, absent))}"
            )
    return problems


def incomplete_pairs(rows: Sequence[Row]) -> list[str]:
    """Return MME's images that do not have their two questions, a line each."""
    images: dict[tuple[str, str], int] = defaultdict(int)
    for row in rows:
        images[text_of(row.get("category")), text_of(row.get("image_path"))] += 1
    return [
        f"image {image} of category {category} has {number} questions instead of 2"
        for (category, image), number in images.items()
        if number != 2
    ]


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
    for row in rows:  # of JSON Lines each has its own columns
        absent = [name for name in needed_columns(benchmark) if name not in row]
        if absent:
            index = quoted(row.get("index"))
            raise DataError(f"{source}: question {index} has no {' and no '.join(absent)}")
    problems = []
    if benchmark.circular and not allow_missing_rotations:
        problems = missing_rotations(rows)
    elif benchmark.totals == "mme":
        problems = incomplete_pairs(rows)
    if problems:
        more = [f"and {len(problems) - 20} more"] if len(problems) > 20 else []
        hint = "; --allow-missing-rotations counts them as right" if benchmark.circular else ""
        raise DataError("\n  ".join([f"{source} is incomplete{hint}:", *problems[:20], *more]))


def _number(row: Row) -> int:
    index = row["index"]
    try:
        return int(index)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise DataError(
            f"index {quoted(index)}: rotations of options are given by whole numbers modulo"
            f" {ROTATION:,}"
        ) from None
