"""Answer a file of questions.

Each line of the file is a JSON object with `prompt` or `messages`, and perhaps `images`, `system`,
`id` and options like `max_tokens`. Answers are written as they are finished; after an
interruption, the same command goes on where it stopped.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from ..batch.output import AnswerFile
from ..batch.request import BatchAnswer, BatchRequest
from ..batch.rows import Row, read_rows
from ..batch.run import DEFAULT_BATCH_SIZE, generate_batch
from ..errors import RequestError
from .main import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_OK
from .model_arguments import (
    add_cache_argument,
    add_generation_arguments,
    add_model_arguments,
    caches,
    generation_options,
    load_model,
)
from .progress import ProgressBars, wants_progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this verb."""
    parser.add_argument("file", type=Path, metavar="FILE.jsonl", help="the questions")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT.jsonl", help="the answers"
    )
    parser.add_argument(
        "--batch-size", type=int, default=DEFAULT_BATCH_SIZE, metavar="ROWS",
        help="answers made at the same time; more need more memory",
    )  # fmt: skip
    parser.add_argument(
        "--image-folder", type=Path, metavar="DIR",
        help="where relative paths of pictures start; else the folder of FILE.jsonl",
    )  # fmt: skip
    parser.add_argument(
        "--retry-errors", action="store_true", help="ask rows again that ended with an error"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_cache_argument(parser)
    add_model_arguments(parser)
    add_generation_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Answer all rows, and return the exit code: 1 if there were errors."""
    options = generation_options(arguments)
    settings = json.dumps(
        {"model": arguments.model, "revision": arguments.revision, "dtype": arguments.dtype}
        | options,
        sort_keys=True,
    )
    folder = arguments.file.parent if arguments.image_folder is None else arguments.image_folder
    answered = failed = 0
    with AnswerFile(arguments.output, retry_errors=arguments.retry_errors) as output:
        total, done = _survey(arguments.file, output, settings)
        asked: dict[int, Row] = {}
        indices = itertools.count()

        def write(row: Row, answer: BatchAnswer) -> None:
            nonlocal answered, failed
            output.add(row, row.digest(settings), answer)
            answered += answer.error is None
            failed += answer.error is not None
            bars.rows(done + answered + failed, total)

        def requests() -> Iterator[BatchRequest]:
            for row in read_rows(arguments.file):
                if output.has(row, row.digest(settings)):
                    continue
                try:
                    request = row.request(folder)
                except RequestError as error:
                    write(row, BatchAnswer(index=-1, result=None, error=str(error)))
                    continue
                asked[next(indices)] = row
                yield request

        with ProgressBars(wants_progress(arguments.quiet)) as bars:
            interrupted = False
            if done < total:
                model, processor = load_model(arguments, bars)
                bars.rows(done, total)
                try:
                    for answer in generate_batch(
                        model,
                        processor,
                        requests(),
                        batch_size=arguments.batch_size,
                        caches=caches(arguments),
                        **options,
                    ):
                        write(asked.pop(answer.index), answer)
                except KeyboardInterrupt:
                    interrupted = True
    print(
        f"{answered} answered, {failed} failed, {done} done before, of {total} rows",
        file=sys.stderr,
    )
    if interrupted:
        print("the same command goes on from here", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_ERROR if failed else EXIT_OK


def _survey(path: Path, output: AnswerFile, settings: str) -> tuple[int, int]:
    """Return how many rows there are and how many are done, before the model is loaded.

    Raises:
        RequestError: two rows have the same id, or the output belongs to other questions.
    """
    numbers: dict[str | int, int] = {}
    done = 0
    for row in read_rows(path):
        if row.key in numbers:
            raise RequestError(
                f"rows {numbers[row.key]} and {row.number} of {path} have the same id {row.key!r}"
            )
        numbers[row.key] = row.number
        done += output.has(row, row.digest(settings))
    return len(numbers), done
