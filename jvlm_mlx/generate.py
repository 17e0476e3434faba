"""Answer a question about images.

The answer goes to standard output; everything else goes to standard error.
"""

import argparse
import dataclasses
import json
import sys
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import closing
from typing import Any

from .cli.arguments import (
    add_generation_arguments,
    add_model_arguments,
    generation_options,
    load_model,
)
from .cli.formatting import summarize
from .cli.main import EXIT_INTERRUPTED, EXIT_OK
from .cli.progress_bars import ProgressBars, wants_progress
from .errors import RequestError
from .generation.answer import Answer
from .generation.caches import GenerationCaches
from .generation.options import GenerationOptions
from .generation.prompt import prepare_prompt
from .generation.response import GenerationResponse, GenerationResult
from .model import Model
from .processing.processor import Processor, Prompt
from .progress import Progress


def stream_generate(
    model: Model,
    processor: Processor,
    prompt: Prompt,
    images: Any = None,
    image: Any = None,
    options: GenerationOptions | Mapping[str, Any] | None = None,
    *,
    system: str | None = None,
    caches: GenerationCaches | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
    **overrides: Any,
) -> Generator[GenerationResponse, None, None]:
    """Answer a prompt, token by token.

    Everything that can be wrong with the request is checked, and images are opened, before
    this returns; the work starts with the first response. Closing the iterator, or setting
    `cancel`, stops the work within one token (during images or prefill: within one group of
    tiles or one step of the prefill) and frees the KV cache.

    May be called from several threads, and the iterator passed between threads: answers take
    turns on the device, token by token. Streams, device and random state of the callers stay as
    they are.

    Args:
        model: from `load`.
        processor: from `load`.
        prompt: a question, or messages with roles and content parts, or what
            `processor.apply_chat_template` returned.
        images: an image or a list: path, URL, data URI, bytes, file object, PIL image,
            array, or what `encode_image` returned. In front of the text of a question; for
            messages, they fill image parts in order.
        image: the same, under the other name people use.
        options: of the answer, all together.
        system: a system message in front.
        caches: what earlier answers stored there is not computed again, and this answer adds to
            it. The tokens are those of an answer without.
        progress: told how far images and prompt have come.
        cancel: set it, from any thread, to end the answer; its last response then has the finish
            reason `cancelled`.
        **overrides: single options by the names of `GenerationOptions`.

    Yields:
        One response for each token; the last one has a finish reason.

    Raises:
        JvlmError: bad options, prompt or images, with one line that says what to do.
    """
    start = time.perf_counter()
    request = GenerationOptions.of(options, overrides, processor.generation_defaults)
    if image is not None and images is not None:
        raise RequestError("image and images are the same argument; give one of them")
    sources = images if image is None else image
    prepared = prepare_prompt(
        processor, prompt, sources, system, request, model=model, cancel=cancel
    )
    return Answer(
        model,
        processor,
        prepared,
        request,
        caches=caches,
        progress=progress,
        cancel=cancel,
        start=start,
    ).responses()


def generate(
    model: Model,
    processor: Processor,
    prompt: Prompt,
    images: Any = None,
    image: Any = None,
    options: GenerationOptions | Mapping[str, Any] | None = None,
    **arguments: Any,
) -> GenerationResult:
    """Answer a prompt and return the whole; arguments and errors as `stream_generate`."""
    return GenerationResult.collect(
        list(stream_generate(model, processor, prompt, images, image, options, **arguments))
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this subcommand."""
    parser.add_argument(
        "-i", "--image", action="append", default=[], metavar="IMAGE",
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
    GenerationOptions.of(None, options)  # refuses what makes no sense, before anything is loaded
    images, prompt = _read_input(arguments)
    stream = arguments.stream and not arguments.json
    responses: list[GenerationResponse] = []
    interrupted = False
    with ProgressBars(wants_progress(arguments.quiet)) as bars:
        model, processor = load_model(arguments, bars)
        answer = stream_generate(
            model,
            processor,
            prompt,
            images,
            system=arguments.system,
            progress=bars.show,
            **options,
        )
        with closing(answer):
            try:
                for response in answer:
                    responses.append(response)
                    if stream:
                        print(response.text, end="", flush=True)
            except KeyboardInterrupt:
                # What has been said so far is kept.
                interrupted = True
    if not responses:
        return EXIT_INTERRUPTED
    result = GenerationResult.collect(responses)
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
    """Return images and prompt; either, but not both, may come from standard input."""
    from_stdin = arguments.image.count("-")
    if from_stdin > 1 or (from_stdin and arguments.prompt is None):
        raise RequestError("standard input can be one image or the prompt, not both or twice")
    images = [sys.stdin.buffer.read() if image == "-" else image for image in arguments.image]
    prompt = arguments.prompt
    if prompt is None:
        if sys.stdin.isatty():
            raise RequestError("there is no question: give one with -p, or on standard input")
        prompt = sys.stdin.read().strip()
        if any("\ud800" <= letter <= "\udfff" for letter in prompt):
            raise RequestError(f"the question on standard input is no {sys.stdin.encoding} text")
    if not prompt and not images:
        raise RequestError("there is nothing to answer: give a question with -p, or an image")
    return images, prompt


if __name__ == "__main__":
    # The module that the package has imported does the work, not this second copy of it.
    from .cli.main import run_subcommand

    sys.exit(run_subcommand("generate"))
