"""Run the paper's benchmarks, score predictions, and compare runs.

The benchmark's file is the one that VLMEvalKit's users have. Answers are kept as they are made:
after an interruption, the same command resumes where it stopped.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache as cache_result
from pathlib import Path
from typing import Any

from .cli.arguments import (
    add_batch_arguments,
    add_single_options,
    caches,
    load_model,
    size,
)
from .cli.batch_requests import FileRequest
from .cli.batch_responses import ResponseFile
from .cli.comparison_report import as_text, write_comparison
from .cli.main import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_OK
from .cli.progress_bars import ProgressBars, wants_progress
from .demo.question_file import write_questions
from .errors import RequestError
from .evaluation.benchmarks import BENCHMARKS, find_benchmark
from .evaluation.judge import Judge
from .evaluation.paired import Comparison, compare_runs
from .evaluation.predictions import score_predictions as score_predictions
from .evaluation.prompts import PAPER, STYLES
from .evaluation.questions import QuestionFile
from .evaluation.runner import (
    Question,
    answer_questions,
    asked_of,
    check_image,
    help_to_answer,
    questions_of,
    read_answers,
)
from .evaluation.score_files import REPORT, read_run, write_scores
from .evaluation.text_sets import TextSet
from .generation.batching import DEFAULT_BATCH_SIZE
from .generation.caches import GenerationCaches
from .generation.requests import BatchResponse
from .model import Model
from .process_group import ProcessGroup
from .processing.processor import Processor
from .progress import Progress, no_progress

MAX_TOKENS = 512
"""Of an answer, as in the paper."""
ANSWERS = "answers.jsonl"
CACHE_SIZE = "150 MB"
"""For images that neighboring questions share. A benchmark has thousands of images, and would fill
any cache."""
_JUDGE_MODEL = "gpt-4o-mini"
_ENGINE_OPTIONS = ("repetition_guard", "prompt_lookup", "wired_limit")
"""Those of `GenerationOptions` that have flags here as elsewhere."""


def evaluate(
    model: Model,
    processor: Processor,
    benchmark: str,
    data: str | Path,
    output: str | Path,
    **options: Any,
) -> dict[str, Any]:
    """Run a model on a benchmark and write its answers, scores and report into a folder.

    The file is checked from end to end first. Answers are appended to `answers.jsonl` in the
    folder one by one; called again after an interruption, the missing ones are made. Started by
    `mlx.launch`, every process answers a part of the questions.

    Args:
        model: from `load`.
        processor: from `load`.
        benchmark: name, such as DocVQA_VAL.
        data: the benchmark's file.
        output: folder for answers.jsonl, rows.jsonl, scores.json and report.md.
        **options: those of `run_benchmark`, and of `GenerationOptions`.

    Returns:
        The content of scores.json.

    Raises:
        RequestError: an argument is out of range, or the folder holds another run.
        DataError: the file cannot be used.
    """
    return run_benchmark(lambda: (model, processor), benchmark, Path(data), Path(output), **options)


def run_benchmark(
    load: Callable[[], tuple[Model, Processor]],
    benchmark: str,
    data: Path,
    output: Path,
    *,
    model_name: str = "",
    prompts: str = PAPER,
    limit: int | None = None,
    seed: int = 0,
    image_root: Path | None = None,
    examples: Path | None = None,
    shots: int | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    cache: GenerationCaches | None = None,
    judge: Judge | None = None,
    retry_errors: bool = False,
    allow_missing_rotations: bool = False,
    progress: Progress = no_progress,
    **options: Any,
) -> dict[str, Any]:
    """Do what `evaluate` does with a model that is loaded only if an answer is missing.

    Args:
        load: called for model and processor.
        benchmark: name, such as DocVQA_VAL.
        data: the benchmark's file.
        output: folder for the results.
        model_name: what the run is called in its files; part of what answers depend on.
        prompts: `paper` or `vlmevalkit`.
        limit: how many questions to draw at random; all unless given.
        seed: of the drawing and of the bootstrap.
        image_root: where relative paths of images start; the folder of `data` unless given.
        examples: file of examples for a text set.
        shots: how many of them precede a question; lm-eval's number unless given.
        batch_size: answers made at the same time.
        cache: for images that several questions share.
        judge: who scores CharXiv and MathVista.
        retry_errors: whether questions that failed are asked again.
        allow_missing_rotations: whether a circular question's missing rotations count as right.
        progress: called after each answer.
        **options: see `GenerationOptions`; greedy with at most 512 tokens unless given.
    """
    found = find_benchmark(benchmark)
    load = cache_result(load)
    options = {"max_tokens": MAX_TOKENS, "temperature": 0.0, **options}
    settings: dict[str, Any] = {"model": model_name, "prompts": prompts, "options": options}
    notes = []
    with ExitStack() as stack:
        if found.is_text:
            settings |= {"prompts": "lm-eval", "shots": shots}
            text_set = TextSet(
                data, found, json.dumps(settings),
                shots=shots, examples=examples, limit=limit, seed=seed,
            )  # fmt: skip
            settings["shots"] = text_set.shots
            questions, total = text_set.questions, text_set.total
            asked = text_set.asked(load, batch_size, options)
        else:
            file = QuestionFile(
                data, found, image_root=image_root, check_image=check_image,
                allow_missing_rotations=allow_missing_rotations,
            )  # fmt: skip
            stack.enter_context(file)
            numbers = file.sample(limit, seed)
            questions = list(questions_of(file, numbers, prompts, json.dumps(settings)))
            total = len(file)
            asked = asked_of(load, file, questions, batch_size=batch_size, caches=cache, **options)
            if file.without_image:
                notes.append(f"{file.without_image} rows have no image and are left out")
        processes, path = ProcessGroup(), output / ANSWERS
        if not processes.is_first:
            help_to_answer(processes, asked)
            return {}
        with _Answers(path, retry_errors) as answers:
            stored = read_answers(path)
            answer_questions(questions, answers, stored, processes, asked, progress, found)
    made = read_answers(path)
    errors = {q.key: error for q in questions if (error := made[q.key].error) is not None}
    if len(questions) < total:
        notes.append(f"{len(questions)} of {total} questions, drawn with seed {seed}")
    if errors:
        notes.append(f"{len(errors)} questions could not be asked and count as wrong")
    details = {
        q.key: {"prompt": q.digest} | ({"error": errors[q.key]} if q.key in errors else {})
        for q in questions
    }
    return write_scores(
        found,
        [(q.row, made[q.key].text) for q in questions],
        output,
        settings={"data": data.name, **settings, "failed": len(errors)},
        notes=notes,
        details=details,
        judge=judge,
        seed=seed,
    )


class _Answers:
    """The file of responses of `jvlm batch`, with questions as its requests."""

    def __init__(self, path: Path, retry_errors: bool) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(f"{path.parent} cannot be made: {error.strerror}") from error
        self._file = ResponseFile(path, retry_errors=retry_errors)

    def has(self, question: Question) -> bool:
        return self._file.has(self._request(question))

    def add(self, question: Question, response: BatchResponse) -> None:
        self._file.add(self._request(question), response)

    def __enter__(self) -> "_Answers":
        self._file.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._file.__exit__(*raised)

    @staticmethod
    def _request(question: Question) -> FileRequest:
        return FileRequest(question.number + 1, "", question.key, question.digest)


def compare(folders: Sequence[str | Path], *, seed: int = 0) -> list[Comparison]:
    """Compare runs that `jvlm evaluate` wrote with the first of the same benchmark.

    Raises:
        DataError: a folder holds no run.
        RequestError: there is nothing to compare.
    """
    if not folders:
        raise RequestError("compare: give the folders of one or more runs")
    return compare_runs([read_run(Path(folder)) for folder in folders], seed)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this subcommand and of its subcommands."""
    parser.add_argument("--benchmark", metavar="NAME", help="such as DocVQA_VAL; see --list")
    parser.add_argument("--list", action="store_true", help="list the benchmarks")
    parser.add_argument("--data", type=Path, metavar="FILE", help="the benchmark's file")
    parser.add_argument(
        "--predictions", type=Path, metavar="FILE",
        help="score these (.tsv, .jsonl, .xlsx, .parquet) instead of running a model",
    )  # fmt: skip
    parser.add_argument("--output", "-o", type=Path, metavar="DIR", help="folder for the results")
    parser.add_argument("--prompts", choices=STYLES, default=PAPER, help="how questions are asked")
    parser.add_argument("--limit", type=int, metavar="N", help="draw this many questions")
    parser.add_argument("--seed", type=int, default=0, help="of drawing and of intervals")
    parser.add_argument("--image-root", type=Path, metavar="DIR", help="for paths of images")
    parser.add_argument("--examples", type=Path, metavar="FILE", help="examples of a text set")
    parser.add_argument("--shots", type=int, metavar="N", help="examples in front of a question")
    parser.add_argument("--judge", metavar="URL", help="OpenAI-compatible API that judges answers")
    parser.add_argument("--judge-model", default=_JUDGE_MODEL, metavar="NAME")
    parser.add_argument(
        "--allow-missing-rotations", action="store_true", help="count missing rotations as right"
    )
    parser.add_argument("--json", action="store_true", help="print scores.json")
    parser.add_argument("--max-tokens", type=int, default=MAX_TOKENS, help="of an answer")
    parser.add_argument("--max-crops", type=int, metavar="TILES", help="most tiles of an image")
    parser.add_argument("--max-memory", type=size, metavar="SIZE", help="such as 8GB")
    add_single_options(parser, *_ENGINE_OPTIONS)
    add_batch_arguments(parser, "questions")
    parser.set_defaults(cache_size=CACHE_SIZE, work=_evaluate)
    subcommands = parser.add_subparsers(metavar="{compare,write-demo}")
    _add_compare(subcommands.add_parser("compare", help="set runs side by side"))
    _add_write_demo(subcommands.add_parser("write-demo", help="draw a benchmark of the demo"))


def _add_write_demo(parser: argparse.ArgumentParser) -> None:
    unset = argparse.SUPPRESS
    parser.add_argument("file", type=Path, metavar="FILE.tsv", help="file to write")
    parser.add_argument("--count", type=int, default=200, metavar="N", help="questions")
    parser.add_argument("--seed", type=int, default=unset, help="another seed, other questions")
    parser.set_defaults(work=_write_demo)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    unset = argparse.SUPPRESS
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="the first is the base"
    )
    parser.add_argument("--published", action="store_true", help="put the paper's figures beside")
    parser.add_argument("--json", action="store_true", default=unset, help="print one JSON object")
    parser.add_argument("--chart", type=Path, metavar="PNG", help="draw scores and intervals")
    parser.add_argument("--output", "-o", type=Path, default=unset, metavar="FILE.json")
    parser.add_argument("--changed", type=int, default=5, metavar="N", help="changed rows to show")
    parser.add_argument("--seed", type=int, default=unset, help="of the bootstrap")
    parser.set_defaults(work=_compare)


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked for, and return the exit code."""
    return int(arguments.work(arguments))


def _evaluate(arguments: argparse.Namespace) -> int:
    if arguments.list:
        for benchmark in BENCHMARKS.values():
            print(f"{benchmark.name:24} {benchmark.group:16} {benchmark.scorer}")
        return EXIT_OK
    for flag in ("benchmark", "output"):
        if getattr(arguments, flag) is None:
            raise RequestError(f"--{flag} is missing")
    judge = Judge.from_url(arguments.judge, arguments.judge_model) if arguments.judge else None
    if arguments.predictions is not None:
        content = score_predictions(
            arguments.benchmark,
            arguments.predictions,
            arguments.output,
            data=arguments.data,
            judge=judge,
            seed=arguments.seed,
            allow_missing_rotations=arguments.allow_missing_rotations,
        )
    elif arguments.data is None:
        raise RequestError("give the benchmark's file with --data, or answers with --predictions")
    else:
        try:
            content = _run_model(arguments, judge)
        except KeyboardInterrupt:
            print("\nthe same command resumes from here", file=sys.stderr)
            return EXIT_INTERRUPTED
    if content:
        report = (arguments.output / REPORT).read_text("utf-8").split("\n## ")[0]
        print(json.dumps(content, ensure_ascii=False, indent=2) if arguments.json else report)
    return EXIT_ERROR if content.get("run", {}).get("failed") else EXIT_OK


def _run_model(arguments: argparse.Namespace, judge: Judge | None) -> dict[str, Any]:
    options = {
        name: getattr(arguments, name)
        for name in ("max_tokens", "max_crops", "max_memory", *_ENGINE_OPTIONS)
        if getattr(arguments, name, None) is not None
    }
    parts = [arguments.model, arguments.revision, arguments.dtype, arguments.adapter_path]
    with ProgressBars(wants_progress(arguments.quiet)) as bars:
        return run_benchmark(
            lambda: load_model(arguments, bars),
            arguments.benchmark,
            arguments.data,
            arguments.output,
            model_name=" ".join(str(part) for part in parts if part is not None),
            prompts=arguments.prompts,
            limit=arguments.limit,
            seed=arguments.seed,
            image_root=arguments.image_root,
            examples=arguments.examples,
            shots=arguments.shots,
            batch_size=arguments.batch_size,
            cache=caches(arguments),
            judge=judge,
            retry_errors=arguments.retry_errors,
            allow_missing_rotations=arguments.allow_missing_rotations,
            progress=bars.show,
            **options,
        )


def _write_demo(arguments: argparse.Namespace) -> int:
    if arguments.count < 1:
        raise RequestError(f"--count is {arguments.count}; it must be at least 1")
    write_questions(arguments.file, arguments.count, arguments.seed)
    return EXIT_OK


def _compare(arguments: argparse.Namespace) -> int:
    comparisons = compare(arguments.folders, seed=arguments.seed)
    if arguments.output or arguments.chart:
        write_comparison(comparisons, arguments.output, arguments.chart, arguments.published)
    if arguments.json:
        print(json.dumps([c.as_json() for c in comparisons], ensure_ascii=False, indent=2))
    else:
        print(as_text(comparisons, published=arguments.published, changed=arguments.changed))
    return EXIT_OK


if __name__ == "__main__":
    # The module that the package has imported does the work, not this second copy of it.
    from .cli.main import run_subcommand

    sys.exit(run_subcommand("evaluate"))
