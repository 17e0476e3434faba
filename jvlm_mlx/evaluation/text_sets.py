"""Text sets in their published files, asked as lm-eval asks them: choices are compared by their
likelihoods, other answers are generated.

The files are the splits that are published as Parquet or JSON Lines: MMLU (question, subject,
choices, answer), ARC-C (question, choices, answerKey), HellaSwag (ctx, endings, label), GSM-8K
(question, answer), MMLU-Pro (question, options, answer, category, cot_content).
"""

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ..errors import DataError
from ..generation.batching import batch_generate
from ..generation.requests import BatchRequest, BatchResponse
from ..generation.response import GenerationResult
from ..model import Model
from ..processing.processor import Processor
from .benchmarks import Benchmark
from .cells import LETTERS, index_of
from .likelihood import raw_prompt, score_continuations
from .prediction_files import read_rows
from .runner import Asked, Question, TextOnly, digest_of

_CHUNK = 64
"""Questions whose choices are scored between two writes."""

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


class TextSet:
    """The questions of a text set and their prompts.

    Args:
        path: the published file, Parquet or JSON Lines.
        benchmark: which it is of.
        settings: what else answers depend on, as a text.
        shots: how many examples precede a question; lm-eval's number unless given.
        examples: file of the split that examples are taken from.
        limit: how many questions to draw at random.
        seed: of the drawing.

    Raises:
        DataError: a file cannot be used, or there are too few examples.
    """

    def __init__(
        self,
        path: Path,
        benchmark: Benchmark,
        settings: str,
        *,
        shots: int | None = None,
        examples: Path | None = None,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        self.shots = default_shots(benchmark) if shots is None else shots
        if self.shots and examples is None:
            raise DataError(
                f"{benchmark.name} shows {self.shots} examples first: give the file of the split"
                " that has them with --examples, or --shots 0"
            )
        everything = read_text_set(path, benchmark)
        self.total = len(everything)
        if limit is not None and limit < self.total:
            chosen = sorted(random.Random(seed).sample(range(self.total), limit))
            everything = [everything[number] for number in chosen]
        self._texts = everything
        shown = read_text_set(examples, benchmark) if examples and self.shots else []
        self.questions = []
        for number, text in enumerate(everything):
            prompt = with_examples(text, shown, self.shots)
            digest = digest_of(settings, [prompt, *text.choices], [])
            self.questions.append(Question(number, text.row, [prompt], digest))

    def asked(
        self, load: Callable[[], tuple[Model, Processor]], batch_size: int, options: dict[str, Any]
    ) -> Asked:
        """Return what answers these questions by their places, as `asked_of` does."""

        def asked(places: Sequence[int]) -> Iterator[tuple[int, BatchResponse]]:
            compared = [place for place in places if self._texts[place].choices]
            for start in range(0, len(compared), _CHUNK):
                yield from self._compare(load(), compared[start : start + _CHUNK])
            generated = [place for place in places if not self._texts[place].choices]
            requests = (self._request(place) for place in generated)
            if generated:
                settings = {**options, "stop": (STOP,), "batch_size": batch_size}
                for response in batch_generate(*load(), requests, **settings):
                    yield generated[response.index], response

        return asked

    def _prompt(self, place: int) -> str:
        return str(self.questions[place].parts[0])

    def _request(self, place: int) -> BatchRequest:
        return BatchRequest(prompt=raw_prompt(self._prompt(place)))

    def _compare(
        self, loaded: tuple[Model, Processor], places: Sequence[int]
    ) -> Iterator[tuple[int, BatchResponse]]:
        texts: list[TextQuestion] = [self._texts[place] for place in places]
        pairs = [
            (self._prompt(place), choice)
            for place, text in zip(places, texts, strict=True)
            for choice in text.choices
        ]
        contexts, continuations = zip(*pairs, strict=True)
        scored = iter(score_continuations(*loaded, contexts, continuations))
        for place, text in zip(places, texts, strict=True):
            logprobs = [round(next(scored).logprob, 6) for _ in text.choices]
            result = cast(GenerationResult, TextOnly(json.dumps(logprobs)))
            yield place, BatchResponse(index=place, result=result, error=None)
