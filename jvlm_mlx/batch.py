"""Answer many requests: a file of questions, or one question about many images.

Each line of the file is a JSON object with `prompt` or `messages`, and perhaps `images`, `system`,
`id` and options like `max_tokens`. Responses are written as they are finished; after an
interruption, the same command resumes where it stopped. Under `mlx.launch`, several processes or
machines share the requests.
"""

import argparse
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

from .cli.arguments import (
    add_batch_arguments,
    add_generation_arguments,
    caches,
    generation_options,
    load_model,
)
from .cli.batch_images import image_patterns, image_requests
from .cli.batch_requests import STANDARD_STREAM, FileRequest, read_requests
from .cli.batch_responses import FORMATS, Format, ResponseFile
from .cli.formatting import printable
from .cli.main import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_OK
from .cli.progress_bars import ProgressBars, wants_progress
from .errors import RequestError
from .generation.batching import batch_generate
from .generation.requests import BatchRequest, BatchResponse
from .process_group import ProcessGroup
from .progress import ProgressEvent

_MAX_REASONS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this subcommand."""
    parser.add_argument(
        "file", type=Path, nargs="?", metavar="FILE.jsonl",
        help="the requests, one JSON object a line; - for standard input",
    )  # fmt: skip
    parser.add_argument(
        "-i", "--images", "--image", nargs="+", action="extend", metavar="IMAGE",
        help="instead of a file: images that are all asked --prompt; paths, globs in quotes such as"
        " 'scans/**/*.png', or folders",
    )  # fmt: skip
    parser.add_argument("-p", "--prompt", help="the question about each of --images")
    parser.add_argument(
        "--per-page", action="store_true",
        help="ask it about each page of a PDF, and each frame of a TIFF, on its own",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT",
        help="the responses as JSON Lines, - for standard output; OUT.csv and OUT.md are made of"
        " OUT.csv.jsonl and OUT.md.jsonl, which are resumed from",
    )  # fmt: skip
    parser.add_argument(
        "--image-folder", type=Path, metavar="DIR",
        help="where relative paths of images start; else the folder of FILE.jsonl, or the current"
        " one if the requests come through a pipe or are --images",
    )  # fmt: skip
    add_batch_arguments(parser, "requests")
    add_generation_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Answer all requests, and return the exit code: 1 if there are errors among the responses."""
    group = ProcessGroup()
    _check_sources(arguments, group)
    sources = image_patterns(arguments.images or (), _image_folder(arguments))
    with sources as (patterns, folder, content):
        config = response_config(arguments) + content
        # Read once, for the requests may come through a pipe; and before the output is opened, so
        # that a mistake here leaves no empty file there.
        if arguments.file is not None:
            requests = read_requests(arguments.file, config)
        else:
            with ProgressBars(wants_progress(arguments.quiet) and group.is_first) as bars:
                requests = image_requests(
                    patterns, arguments.prompt, folder, config,
                    per_page=arguments.per_page, progress=bars.show,
                )  # fmt: skip
        return answer_requests(arguments, requests, folder, group)


def answer_requests(
    arguments: argparse.Namespace,
    requests: list[FileRequest],
    folder: Path,
    group: ProcessGroup,
    formats: Mapping[str, Format] = FORMATS,
) -> int:
    """Answer requests into the output file, say how many failed and why; return the exit code.

    Args:
        arguments: with the output and the flags of models, options and caches.
        requests: all of the run, answered before or not.
        folder: that relative paths of images start from.
        group: the processes that share them.
        formats: of outputs, see `ResponseFile`.
    """
    options = generation_options(arguments)
    answered = 0
    reasons: Counter[str] = Counter()
    interrupted = False
    with ResponseFile(
        arguments.output, group, retry_errors=arguments.retry_errors, formats=formats
    ) as output:
        waiting = [request for request in requests if not output.has(request)]
        done = len(requests) - len(waiting)
        failed_before = sum(map(output.has_error, requests))
        own = waiting[group.rank :: group.count]
        total = done + len(own)
        running: dict[int, FileRequest] = {}
        indices = itertools.count()

        def write(request: FileRequest, response: BatchResponse) -> None:
            nonlocal answered
            output.add(request, response)
            if response.error is None:
                answered += 1
            else:
                reasons[response.error] += 1
            finished = done + answered + reasons.total()
            bars.show(ProgressEvent("requests", finished, total, "request"))

        def checked() -> Iterator[BatchRequest]:
            for request in own:
                try:
                    given = request.request(folder)
                except RequestError as error:
                    write(request, BatchResponse(index=-1, result=None, error=str(error)))
                    continue
                running[next(indices)] = request
                yield given

        with ProgressBars(wants_progress(arguments.quiet) and group.is_first) as bars:
            if own:
                model, processor = load_model(arguments, bars)
                bars.show(ProgressEvent("requests", done, total, "request"))
                responses = batch_generate(
                    model,
                    processor,
                    checked(),
                    batch_size=arguments.batch_size,
                    caches=caches(arguments),
                    **options,
                )
                try:
                    with closing(responses):
                        for response in responses:
                            write(running.pop(response.index), response)
                except KeyboardInterrupt:
                    interrupted = True
        if not interrupted:
            output.finish()
            answered, reasons = _of_all_processes(answered, reasons, group)
    failed = reasons.total()
    if not group.is_first and not interrupted:
        return EXIT_OK  # mlx.launch would end the first process before it has said anything
    if group.is_first:
        before = f"{done} done before" + (
            f" ({failed_before} of them failed)" * bool(failed_before)
        )
        counts = f"{answered} answered, {failed} failed, {before}, of {len(requests)} requests"
        print("\n".join([counts, *_explain(reasons)]), file=sys.stderr)
    if interrupted:
        print("the same command resumes from here", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_ERROR if failed or failed_before else EXIT_OK


def _check_sources(arguments: argparse.Namespace, group: ProcessGroup) -> None:
    """Refuse sources of requests that exclude each other, or the output."""
    if (arguments.file is None) == (arguments.images is None):
        raise RequestError("give either a file of requests, or --images and --prompt")
    if (arguments.images is None) != (arguments.prompt is None):
        raise RequestError("--images and --prompt belong together; a file has its own prompts")
    reads_stdin = STANDARD_STREAM in (arguments.file, *map(Path, arguments.images or ()))
    if reads_stdin and group.count > 1:
        raise RequestError(f"{group.count} processes cannot share standard input; give a file")
    if arguments.file is not None and _is_same_file(arguments.file, arguments.output):
        raise RequestError(f"{arguments.output} is the file of requests: choose another output")


def response_config(arguments: argparse.Namespace) -> str:
    """Return, as a text, what every response depends on beside its request."""
    config = {
        "model": arguments.model,
        "revision": arguments.revision,
        "dtype": arguments.dtype,
        **generation_options(arguments),
    }
    # Absent if not given, so that files of responses stay valid that are older than these.
    for name in ("adapter_path", "image_folder"):
        path: Path | None = getattr(arguments, name, None)
        if path is not None:
            config[name] = str(path.resolve())
    return json.dumps(config, sort_keys=True)


def _image_folder(arguments: argparse.Namespace) -> Path:
    """Return where relative paths of images start."""
    if arguments.image_folder is not None:
        return Path(arguments.image_folder)
    # What the shell passes as a file has no folder of its own: /dev/stdin, or /dev/fd/63.
    file = arguments.file
    piped = file is None or any(file.absolute().is_relative_to(one) for one in ("/dev", "/proc"))
    return Path() if piped else Path(file.parent)


def _is_same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them is missing, usually the output
        return False


def _of_all_processes(
    answered: int, reasons: Counter[str], group: ProcessGroup
) -> tuple[int, Counter[str]]:
    counts = [json.loads(one) for one in group.gather(json.dumps([answered, reasons]))]
    return sum(one[0] for one in counts), sum((Counter(one[1]) for one in counts), Counter())


def _explain(reasons: Counter[str]) -> list[str]:
    """Return a line for each kind of failure, with an example: names and numbers may differ."""
    kinds: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for message, count in reasons.items():
        kind = re.sub(r"'[^']*'|\"[^\"]*\"|\d+", "...", message)
        kinds[kind] += count
        examples.setdefault(kind, message)
    lines = [
        f"  {count} failed: {printable(examples[kind])}"
        for kind, count in kinds.most_common(_MAX_REASONS)
    ]
    others = sum(count for _, count in kinds.most_common()[_MAX_REASONS:])
    return lines + ([f"  {others} failed for other reasons"] if others else [])


if __name__ == "__main__":
    # The module that the package has imported does the work, not this second copy of it.
    from .cli.main import run_subcommand

    sys.exit(run_subcommand("batch"))
