"""Text sets in their published files, asked as lm-eval asks them.

The files are the splits that are published as Parquet or JSON Lines: MMLU (question, subject,
choices, answer), ARC-C (question, choices, answerKey), HellaSwag (ctx, endings, label), GSM-8K
(question, answer), MMLU-Pro (question, options, answer, category, cot_content).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from .benchmarks import Benchmark
from .cells import LETTERS, index_of
from .prediction_files import read_rows

STOP = "Question:"
"""Where a generated answer ends: the model begins a question of its own."""
_BRACKETS = re.compile(r"\[.*?\]")


@dataclass(frozen=True)
class TextQuestion:
    """A question of a text set."""

    row: Mapping[str, Any]
    """index, answer (a letter, or a solution), category, and choices where there are some."""
    text: str
    """What the question is asked with."""
    choices: tuple[str, ...]
    """Continuations whose likelihoods are compared; none if an answer is generated."""
    solution: str
    """What follows the question in an example."""
    header: str
    """Precedes all examples."""


def _mmlu(index: int, row: Mapping[str, Any]) -> TextQuestion:
    choices = [str(choice) for choice in row["choices"]]
    subject = str(row["subject"])
    letters = LETTERS[: len(choices)]
    lines = "".join(f"{letter}. {text}\n" for letter, text in zip(letters, choices, strict=True))
    answer = letters[int(row["answer"])]
    header = f"The following are multiple choice questions (with answers) about {_words(subject)}."
    return TextQuestion(
        {"index": index, "answer": answer, "category": subject, "choices": list(letters)},
        f"{str(row['question']).strip()}\n{lines}Answer:",
        tuple(f" {letter}" for letter in letters),
        f" {answer}",
        f"{header}\n\n",
    )


def _words(subject: str) -> str:
    return subject.replace("_", " ")


def _arc(index: int, row: Mapping[str, Any]) -> TextQuestion:
    choices = [str(choice) for choice in row["choices"]["text"]]
    place = [str(label) for label in row["choices"]["label"]].index(str(row["answerkey"]))
    return TextQuestion(
        {"index": row.get("id", index), "answer": LETTERS[place], "choices": choices},
        f"Question: {row['question']}\nAnswer:",
        tuple(f" {choice}" for choice in choices),
        f" {choices[place]}",
        "",
    )


def _hellaswag(index: int, row: Mapping[str, Any]) -> TextQuestion:
    context = f"{row['ctx_a']} {str(row['ctx_b']).capitalize()}"
    choices = [_without_brackets(str(ending)) for ending in row["endings"]]
    place = int(row["label"])
    return TextQuestion(
        {
            "index": row.get("ind", index),
            "answer": LETTERS[place],
            "category": row.get("split_type"),
            "choices": choices,
        },
        _without_brackets(f"{row['activity_label']}: {context}"),
        tuple(f" {choice}" for choice in choices),
        f" {choices[place]}",
        "",
    )


def _without_brackets(text: str) -> str:
    """Remove what WikiHow's pages have in brackets, `[title]` and the like."""
    text = text.strip().replace(" [title]", ". ")
    return _BRACKETS.sub("", text).replace("  ", " ")


def _gsm8k(index: int, row: Mapping[str, Any]) -> TextQuestion:
    return TextQuestion(
        {"index": index, "answer": str(row["answer"])},
        f"Question: {row['question']}\nAnswer:",
        (),
        f" {row['answer']}",
        "",
    )


def _mmlu_pro(index: int, row: Mapping[str, Any]) -> TextQuestion:
    category = str(row["category"])
    options = [str(text).strip() for text in row["options"]]
    lines = "".join(f"{LETTERS[n]}. {text}\n" for n, text in enumerate(options))
    header = (
        f"The following are multiple choice questions (with answers) about {category}. Think step"
        ' by step and then finish your answer with "the answer is (X)" where X is the correct'
        " letter choice."
    )
    solution = str(row.get("cot_content") or "").removeprefix("A: Let's think step by step.")
    return TextQuestion(
        {
            "index": row.get("question_id", index),
            "answer": str(row["answer"]),
            "category": category,
        },
        f"Question:\n{row['question']}\nOptions:\n{lines}Answer: Let's think step by step.",
        (),
        solution,
        f"{header}\n\n",
    )


_READERS: dict[str, Callable[[int, Mapping[str, Any]], TextQuestion]] = {
    "mmlu": _mmlu,
    "arc": _arc,
    "hellaswag": _hellaswag,
    "gsm8k": _gsm8k,
    "mmlu_pro": _mmlu_pro,
}
_SHOTS = {"gsm8k": 5, "mmlu_pro": 5, "mmlu": 5, "arc": 0, "hellaswag": 0}


def default_shots(benchmark: Benchmark) -> int:
    """Return how many examples usually precede a question."""
    return _SHOTS[benchmark.prompt]


def read_text_set(path: Path, benchmark: Benchmark) -> list[TextQuestion]:
    """Return the questions of a file.

    Raises:
        DataError: the file cannot be read; a row that is no question is named.
    """
    rows, places = read_rows(path)
    questions = []
    seen: dict[str, str] = {}
    for number, (row, place) in enumerate(zip(rows, places, strict=True)):
        try:
            question = _READERS[benchmark.prompt](number, row)
        except KeyError as error:
            raise DataError(f"{path}, {place}: no column {error.args[0]}") from None
        except (TypeError, ValueError, IndexError) as error:
            raise DataError(f"{path}, {place}: no question of {benchmark.name}: {error}") from None
        before = seen.setdefault(index_of(question.row), place)
        if before != place:
            raise DataError(f"{path}, {place}: its index is that of {before} too")
        questions.append(question)
    return questions


def with_examples(question: TextQuestion, examples: Sequence[TextQuestion], shots: int) -> str:
    """Return a question behind the first `shots` examples of its category.

    Raises:
        DataError: there are not as many.
    """
    category = question.row.get("category")
    same = [one for one in examples if one.row.get("category") == category]
    if len(same) < shots:
        raise DataError(
            f"question {question.row['index']}: {shots} examples are needed"
            + (f" of {category}" if category else "")
            + f" and {len(same)} are there; give the file of examples, or fewer --shots"
        )
    shown = "".join(f"{one.text}{one.solution}\n\n" for one in same[:shots])
    return question.header + shown + question.text
