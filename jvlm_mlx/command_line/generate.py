"""Answer a question about pictures.

The answer goes to standard output; everything else goes to standard error.
"""

import argparse
import dataclasses
import json
import sys
from contextlib import closing

from ..errors import RequestError
from ..exit_codes import EXIT_INTERRUPTED, EXIT_OK
from ..generate import GenerationOptions, GenerationPiece, GenerationResult, stream_generate
from ..generate.summary import summarize
from .model_arguments import (
    add_generation_arguments,
    add_model_arguments,
    generation_options,
    load_model,
)
from .progress import ProgressBars, wants_progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this verb."""
    parser.add_argument(
        "-i", "--image", action="append", default=[], metavar="PICTURE",
        help="path, URL, data URI, or - for standard input; may be repeated",
    )  # fmt: skip
    parser.add_argument("-p", "--prompt", help="the question; else it is read from standard input")
    parser.add_argument("--system", help="a system message in front")
    parser.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="show the answer while it is made",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--verbose", action="store_true", help="show speeds and memory")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_model_arguments(parser)
    add_generation_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Answer, and return the exit code."""
    options = generation_options(arguments)
    GenerationOptions(**options)  # refuses what makes no sense, before anything is loaded
    images, prompt = _read_input(arguments)
    stream = arguments.stream and not arguments.json
    pieces: list[GenerationPiece] = []
    interrupted = False
    with ProgressBars(wants_progress(arguments.quiet)) as bars:
        model, processor = load_model(arguments, bars)
        answer = stream_generate(
            model,
            processor,
            prompt,
            images,
            system=arguments.system,
            progress=bars.stage,
            **options,
        )
        with closing(answer):
            try:
                for piece in answer:
                    pieces.append(piece)
                    if stream:
                        print(piece.text, end="", flush=True)
            except KeyboardInterrupt:
                # What has been said so far is kept.
                interrupted = True
    if not pieces:
        return EXIT_INTERRUPTED
    result = GenerationResult.collect(pieces)
    if interrupted:
        result = dataclasses.replace(result, finish_reason="cancelled")
    if arguments.json:
        print(json.dumps(dataclasses.asdict(result), ensure_ascii=False))
    else:
        print("" if stream else result.text)
    if arguments.verbose:
        print(summarize(result), file=sys.stderr)
    return EXIT_INTERRUPTED if interrupted else EXIT_OK


def _read_input(arguments: argparse.Namespace) -> tuple[list[str | bytes], str]:
    """Return pictures and prompt; either, but not both, may come from standard input."""
    from_stdin = arguments.image.count("-")
    if from_stdin > 1 or (from_stdin and arguments.prompt is None):
        raise RequestError("standard input can be one picture or the prompt, not both or twice")
    images = [sys.stdin.buffer.read() if image == "-" else image for image in arguments.image]
    prompt = arguments.prompt
    if prompt is None:
        if sys.stdin.isatty():
            raise RequestError("there is no question: give one with -p, or on standard input")
        prompt = sys.stdin.read().strip()
        if any("\ud800" <= letter <= "\udfff" for letter in prompt):
            raise RequestError(f"the question on standard input is no {sys.stdin.encoding} text")
    if not prompt and not images:
        raise RequestError("there is nothing to answer: give a question with -p, or a picture")
    return images, prompt
