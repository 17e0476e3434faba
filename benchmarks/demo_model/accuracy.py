"""Measures how often a model answers held-out demo questions exactly right.

Every question stands alone, and the answer is greedy. It counts as right if it is the expected one
to the letter, blanks around it aside.
"""

import argparse
import math
import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from huggingface_hub.utils import tqdm

from jvlm_mlx.checkpoint.loader import load
from jvlm_mlx.demo.example import Example
from jvlm_mlx.demo.tasks import LANGUAGES, TASKS, example_at
from jvlm_mlx.generation import device
from jvlm_mlx.generation.engine import Engine
from jvlm_mlx.generation.row import Row
from jvlm_mlx.model import Model
from jvlm_mlx.processing.inputs import ModelInputs
from jvlm_mlx.processing.processor import Processor

from ..harness.report import markdown_table
from .maker_command import positive, run_command

Answerer = Callable[[Sequence[Example]], Sequence[str]]
"""Answers the first question of each example."""

EXAMPLES_PER_TASK = 200
_SEED = 1_000_003
_BATCH_SIZE = 32
_MAX_TOKENS = 24
"""No right answer is as long."""
_TILE_GROUP_SIZE = 32


class Score(NamedTuple):
    """How many questions were asked, and how many answered right."""

    right: int
    asked: int

    @property
    def share(self) -> float:
        """Of the questions, those answered right; not a number if none was asked."""
        return self.right / self.asked if self.asked else math.nan

    def __str__(self) -> str:
        return f"{self.share:.1%}" if self.asked else "-"


class WrongAnswer(NamedTuple):
    """A question that was not answered right."""

    task: str
    language: str
    question: str
    expected: str
    found: str


@dataclass(frozen=True)
class Accuracy:
    """Scores by task and language."""

    scores: Mapping[tuple[str, str], Score]
    """By task and language, of those that were asked for."""
    wrong: tuple[WrongAnswer, ...]

    def of(self, *, task: str | None = None, language: str | None = None) -> Score:
        """Return the score of a task, of a language, of both, or of all together."""
        chosen = [
            score
            for (one_task, one_language), score in self.scores.items()
            if task in (None, one_task) and language in (None, one_language)
        ]
        return Score(sum(score.right for score in chosen), sum(score.asked for score in chosen))

    def table(self) -> str:
        """Return a Markdown table: a row for each task, a column for each language."""
        tasks = list(dict.fromkeys(task for task, _ in self.scores))
        languages = list(dict.fromkeys(language for _, language in self.scores))
        rows = []
        for task in (*tasks, None):
            whole = self.of(task=task)
            cells = [str(self.of(task=task, language=language)) for language in languages]
            rows.append([task or "all", *cells, str(whole), str(whole.asked)])
        return markdown_table(["task", *languages, "all", "asked"], rows)


def measure(
    answer: Answerer,
    *,
    count: int = EXAMPLES_PER_TASK,
    tasks: Sequence[str] = TASKS,
    languages: Sequence[str] = LANGUAGES,
    seed: int = _SEED,
    batch_size: int = _BATCH_SIZE,
    progress: Callable[[int, int], None] | None = None,
) -> Accuracy:
    """Ask held-out questions and count the right answers.

    Args:
        answer: gives the answers.
        count: questions of each task.
        tasks: what to ask.
        languages: those to ask in, in turn.
        seed: of the questions; whatever it is, no image is one of training.
        batch_size: most questions that are handed to `answer` at once; all of one task.
        progress: called with questions done and questions in all.
    """
    right = {(task, language): 0 for task in tasks for language in languages}
    asked = dict.fromkeys(right, 0)
    wrong: list[WrongAnswer] = []
    done, total = 0, count * len(tasks)
    for task in tasks:
        for batch in _batches(seed, count, task, languages, batch_size):
            for example, found in zip(batch, answer(batch), strict=True):
                turn, key = example.turns[0], (task, example.language)
                asked[key] += 1
                if found.strip() == turn.answer:
                    right[key] += 1
                else:
                    wrong.append(WrongAnswer(*key, turn.question, turn.answer, found.strip()))
            done += len(batch)
            if progress is not None:
                progress(done, total)
    return Accuracy({key: Score(right[key], asked[key]) for key in right}, tuple(wrong))


def _batches(
    seed: int, count: int, task: str, languages: Sequence[str], size: int
) -> Iterator[list[Example]]:
    batch: list[Example] = []
    for place in range(count):
        language = languages[place % len(languages)]
        batch.append(example_at(seed, place, (task,), (language,), held_out=True))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def measure_accuracy(
    model: Model, processor: Processor, *, without_tiles: bool = False, **options: Any
) -> Accuracy:
    """Measure a model.

    Args:
        model: from `load`.
        processor: from `load`.
        without_tiles: whether the model sees of every image only the thumbnail, so that small
            print is lost.
        **options: of `measure`.
    """
    max_crops = 1 if without_tiles else None
    return measure(greedy_answerer(model, processor, max_crops=max_crops), **options)


def greedy_answerer(
    model: Model, processor: Processor, *, max_crops: int | None = None
) -> Answerer:
    """Return what answers the first questions of examples, all together.

    `batch_generate` reads one prompt after the other. Here prompts are read together, which for
    so small a model is several times as fast.
    """

    def answer(batch: Sequence[Example]) -> list[str]:
        inputs = processor(
            [_prompt(processor, example) for example in batch],
            [[] if example.image is None else [example.image] for example in batch],
            max_crops=max_crops,
        )
        stops = processor.tokenizer.stop_token_ids
        tokens = device.run(lambda: _decode(model, inputs, stops))
        return [processor.decode(one) for one in tokens]

    return answer


def _prompt(processor: Processor, example: Example) -> str:
    question = {"type": "text", "text": example.turns[0].question}
    content = [question] if example.image is None else [{"type": "image"}, question]
    return processor.apply_chat_template([{"role": "user", "content": content}])


def _decode(model: Model, inputs: ModelInputs, stops: Container[int]) -> list[list[int]]:
    """Return the greedy tokens of every prompt, up to a stop token. On the device's worker."""
    cache = model.make_cache(inputs.attention_mask)
    embeddings = model.embed(
        inputs.input_ids,
        pixel_values=inputs.pixel_values,
        image_masks=inputs.image_masks,
        image_input_idx=inputs.image_input_idx,
        tile_group_size=_TILE_GROUP_SIZE,
    )
    rows = [Row(max_tokens=_MAX_TOKENS) for _ in inputs.input_ids]
    answers: dict[Row, list[int]] = {row: [] for row in rows}
    engine = Engine(model)
    # (B, L, D) -> (B, D) -> (B, V)
    engine.add(rows, cache, model.head(model.decoder(embeddings, cache)[:, -1]))
    while engine.rows:
        for row, token, _ in engine.step():
            if token in stops:
                row.cancelled = True
            else:
                answers[row].append(token)
    return list(answers.values())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument("--model", default="demo", metavar="DIR", help="checkpoint to measure")
    parser.add_argument(
        "--examples", type=positive, default=EXAMPLES_PER_TASK, help="questions of each task"
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, help="what to ask")
    parser.add_argument(
        "--languages", nargs="+", choices=LANGUAGES, default=LANGUAGES, help="those to ask in"
    )
    parser.add_argument("--without-tiles", action="store_true", help="show only the thumbnail")
    parser.add_argument("--seed", type=int, default=_SEED, help="of the questions")
    parser.add_argument(
        "--wrong", type=int, default=0, metavar="N", help="print this many wrong answers"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, and return the exit code."""
    model, processor = load(arguments.model)
    with tqdm(unit="question", leave=False, disable=not sys.stderr.isatty()) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        accuracy = measure_accuracy(
            model,
            processor,
            without_tiles=arguments.without_tiles,
            count=arguments.examples,
            tasks=arguments.tasks,
            languages=arguments.languages,
            seed=arguments.seed,
            progress=show,
        )
    print(accuracy.table())
    for one in accuracy.wrong[: arguments.wrong]:
        print(f"{one.task} {one.language}: {one.question} {one.expected!r}, not {one.found!r}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command("python -m benchmarks.demo_model.accuracy", __doc__, add_arguments, run))
