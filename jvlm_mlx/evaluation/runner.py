"""A model on the questions of a file: requests for the batch engine, and its stored answers."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..errors import DataError
from ..generation.batching import batch_generate
from ..generation.requests import BatchRequest, BatchResponse
from ..generation.response import GenerationResult
from ..model import Model
from ..process_group import ProcessGroup
from ..processing.image_io import read_image
from ..processing.processor import Processor
from ..progress import Progress, ProgressEvent
from .benchmarks import Benchmark
from .cells import Row, index_of
from .prompts import Part, prompt_parts
from .questions import ImageSource, QuestionFile
from .scoring import SCORERS, score

Asked = Callable[[Sequence[int]], Iterator[tuple[int, BatchResponse]]]
"""Answers the questions with these numbers; yields them with their numbers as they are done."""

_ROUND = 32
"""Questions of each process between two exchanges."""


@dataclass(frozen=True)
class Question:
    """A question of a file, ready to be asked."""

    number: int
    """Its place among the file's questions, from 0."""
    row: Row
    parts: Sequence[Part]
    """Of its prompt: texts, and numbers of images."""
    digest: str
    """Of everything that its answer depends on: settings, prompt, images."""

    @property
    def key(self) -> str:
        """Its index as text: what answers are stored under."""
        return index_of(self.row)


def questions_of(
    file: QuestionFile, numbers: Sequence[int], style: str, settings: str
) -> Iterator[Question]:
    """Yield questions of a file in order, those with these numbers.

    `settings` is what else answers depend on, as a text: model, options, ...

    Raises:
        DataError: a question cannot be asked.
    """
    for number in numbers:
        row = file.row(number)
        digests = file.image_digests(number)
        parts = prompt_parts(file.benchmark, row, len(digests), style)
        yield Question(number, row, parts, digest_of(settings, parts, digests))


def digest_of(settings: str, parts: Sequence[Part], images: Sequence[str]) -> str:
    """Return the digest of what an answer depends on: settings, prompt, digests of images."""
    content = json.dumps([settings, parts, images])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def request_of(question: Question, images: Sequence[ImageSource]) -> BatchRequest:
    """Return what the model is asked, images where the prompt has them."""
    content: list[dict[str, Any]] = [
        {"type": "image", "image": images[part]}
        if isinstance(part, int)
        else {"type": "text", "text": part}
        for part in question.parts
    ]
    return BatchRequest(prompt=[{"role": "user", "content": content}])


def check_image(image: ImageSource) -> None:
    """Refuse what is no image, by its header; pixels are decoded when they are needed.

    Raises:
        ImageError: there is no such image, or no format takes it.
    """
    read_image(image)


@dataclass(frozen=True)
class TextOnly:
    """A result that was not generated: the likelihoods of choices."""

    text: str


@dataclass(frozen=True)
class StoredAnswer:
    """An answer as the file of answers has it."""

    digest: str
    text: str
    error: str | None


def read_answers(path: Path) -> dict[str, StoredAnswer]:
    """Return what a file of answers has, by the index of each question as text.

    Raises:
        DataError: the file was changed while it was used.
    """
    answers = {}
    try:
        for line in path.read_bytes().splitlines():
            content: Mapping[str, Any] = json.loads(line)
            answers[content["id"]] = StoredAnswer(
                content["request"], content.get("text", ""), content.get("error")
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} was changed while it was used: {error}") from error
    return answers


class Answers(Protocol):
    """Where answers are stored as they are made."""

    def has(self, question: Question) -> bool:
        """Return whether a question has its answer."""

    def add(self, question: Question, response: BatchResponse) -> None:
        """Store an answer."""


def asked_of(
    load: Callable[[], tuple[Model, Processor]],
    file: QuestionFile,
    questions: Sequence[Question],
    **options: Any,
) -> Asked:
    """Return what answers questions by their place in a list.

    `load` is called for model and processor whenever there are questions for them; `options` are
    those of `batch_generate`.
    """

    def requests(places: Sequence[int]) -> Iterator[BatchRequest]:
        for place in places:
            yield request_of(questions[place], file.images(questions[place].number))

    def asked(places: Sequence[int]) -> Iterator[tuple[int, BatchResponse]]:
        if places:
            for response in batch_generate(*load(), requests(places), **options):
                yield places[response.index], response

    return asked


def answer_questions(
    questions: Sequence[Question],
    answers: Answers,
    stored: Mapping[str, StoredAnswer],
    processes: ProcessGroup,
    asked: Asked,
    progress: Progress,
    benchmark: Benchmark,
) -> None:
    """Make the answers that are not stored yet, with the help of the other processes; this is the
    first one. The benchmark's rule gives the running score, if it needs no judge.
    """
    waiting = [n for n, question in enumerate(questions) if not answers.has(question)]
    done, total = len(questions) - len(waiting), 0.0

    def show() -> None:
        known = done and benchmark.scorer in SCORERS
        note = f"mean score {100 * total / done:.1f}" if known else ""
        progress(ProgressEvent("questions", done, len(questions), "question", note))

    def score_of(question: Question, text: str) -> float:
        if benchmark.scorer not in SCORERS:
            return 0.0
        return score(benchmark, question.row, text).score

    total += sum(score_of(q, stored[q.key].text) for q in questions if q.key in stored)
    show()
    for place, response in _answers_of_all(processes, waiting, asked):
        answers.add(questions[place], response)
        done += 1
        total += score_of(questions[place], response.result.text if response.result else "")
        show()


def help_to_answer(processes: ProcessGroup, asked: Asked) -> None:
    """Answer this process's part of the questions that the first process waits for."""
    for _ in _answers_of_all(processes, None, asked):
        pass


def _answers_of_all(
    processes: ProcessGroup, waiting: Sequence[int] | None, asked: Asked
) -> Iterator[tuple[int, BatchResponse]]:
    """Yield the answers to all waiting questions, in every process.

    Only the first process reads and writes files of answers, and knows which questions wait, for
    processes on several machines have no disk in common. The benchmark's file lies on each of them.
    """
    if processes.count == 1:
        yield from asked(waiting or [])
        return
    waiting = json.loads(processes.gather(json.dumps(waiting))[0])
    per_round = _ROUND * processes.count
    for start in range(0, len(waiting), per_round):
        mine = waiting[start : start + per_round][processes.rank :: processes.count]
        made = [(number, dataclasses.asdict(response)) for number, response in asked(mine)]
        for text in processes.gather(json.dumps(made)):
            for number, response in json.loads(text):
                if response["result"] is not None:
                    kind = GenerationResult if "token_ids" in response["result"] else TextOnly
                    response["result"] = kind(**response["result"])
                yield number, BatchResponse(**response)
