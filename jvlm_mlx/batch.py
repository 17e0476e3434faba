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
from typing import Any

from .cli.arguments import (
    add_cache_argument,
    add_generation_arguments,
    add_model_arguments,
    caches,
    generation_options,
    load_model,
)
from .cli.batch_requests import Row, read_rows
from .cli.batch_responses import AnswerFile
from .cli.main import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_OK
from .cli.progress_bars import ProgressBars, wants_progress
from .errors import RequestError
from .generation.batch_engine import DEFAULT_BATCH_SIZE, batch_generate
from .generation.requests import BatchRequest, BatchResponse
from .progress import ProgressEvent


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this subcommand."""
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
        help="where relative paths of images start; else the folder of FILE.jsonl, or the current"
        " one if the questions come through a pipe",
    )  # fmt: skip
    parser.add_argument(
        "--retry-errors", action="store_true", help="ask rows again that ended with an error"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_cache_argument(parser)
    add_model_arguments(parser)
    add_generation_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Answer all rows, and return the exit code: 1 if there are errors among the answers."""
    options = generation_options(arguments)
    config = _config(arguments, options)
    folder = _image_folder(arguments)
    # Read once, for the questions may come through a pipe; and before the output is opened, so
    # that a mistake here leaves no empty file there.
    rows = _read_questions(arguments.file)
    if _is_same_file(arguments.file, arguments.output):
        raise RequestError(f"{arguments.output} is the file of questions: choose another output")
    answered = failed = 0
    with AnswerFile(arguments.output, retry_errors=arguments.retry_errors) as output:
        waiting = [row for row in rows if not output.has(row, row.digest(config))]
        done = len(rows) - len(waiting)
        failed_before = sum(map(output.has_error, rows))
        asked: dict[int, Row] = {}
        indices = itertools.count()

        def write(row: Row, answer: BatchResponse) -> None:
            nonlocal answered, failed
            output.add(row, row.digest(config), answer)
            answered += answer.error is None
            failed += answer.error is not None
            bars.show(ProgressEvent("requests", done + answered + failed, len(rows), "request"))

        def requests() -> Iterator[BatchRequest]:
            for row in waiting:
                try:
                    request = row.request(folder)
                except RequestError as error:
                    write(row, BatchResponse(index=-1, result=None, error=str(error)))
                    continue
                asked[next(indices)] = row
                yield request

        with ProgressBars(wants_progress(arguments.quiet)) as bars:
            interrupted = False
            if waiting:
                model, processor = load_model(arguments, bars)
                bars.show(ProgressEvent("requests", done, len(rows), "request"))
                try:
                    for answer in batch_generate(
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
    kept = f"{done} done before" + (f" ({failed_before} of them failed)" if failed_before else "")
    print(f"{answered} answered, {failed} failed, {kept}, of {len(rows)} rows", file=sys.stderr)
    if interrupted:
        print("the same command goes on from here", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_ERROR if failed or failed_before else EXIT_OK


def _config(arguments: argparse.Namespace, options: dict[str, Any]) -> str:
    """Return, as a text, what every answer depends on beside its question."""
    config = {
        "model": arguments.model,
        "revision": arguments.revision,
        "dtype": arguments.dtype,
        **options,
    }
    # Absent if not given, so that files of answers stay valid that are older than these.
    for name in ("adapter_path", "image_folder"):
        path: Path | None = getattr(arguments, name)
        if path is not None:
            config[name] = str(path.resolve())
    return json.dumps(config, sort_keys=True)


def _image_folder(arguments: argparse.Namespace) -> Path:
    """Return where relative paths of images start."""
    if arguments.image_folder is not None:
        return Path(arguments.image_folder)
    # What the shell passes as a file has no folder of its own: /dev/stdin, or /dev/fd/63.
    passed = any(arguments.file.absolute().is_relative_to(root) for root in ("/dev", "/proc"))
    return Path() if passed else Path(arguments.file.parent)


def _read_questions(path: Path) -> list[Row]:
    """Return all rows of a file.

    Raises:
        RequestError: it cannot be read, or two rows have the same id.
    """
    rows = list(read_rows(path))
    numbers: dict[str | int, int] = {}
    for row in rows:
        number = numbers.setdefault(row.key, row.number)
        if number != row.number:
            raise RequestError(
                f"rows {number} and {row.number} of {path} have the same id {row.key!r}"
            )
    return rows


def _is_same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them is missing, usually the output
        return False


if __name__ == "__main__":
    # The module that the package has imported does the work, not this second copy of it.
    from .cli.main import run_subcommand

    sys.exit(run_subcommand("batch"))
