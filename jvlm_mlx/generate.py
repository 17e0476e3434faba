"""Answer a question about images.

The answer goes to standard output; everything else goes to standard error.
"""

import argparse
import dataclasses
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
from .cli.formatting import json_line, printable, summarize
from .cli.generate_questions import (
    add_question_arguments,
    extra_stop_tokens,
    prefilled_prompt,
    read_questions,
)
from .cli.main import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_OK, run_subcommand
from .cli.progress_bars import ProgressBars, wants_progress
from .errors import JvlmError, RequestError, SessionError
from .files import local_path
from .generation.answer import Answer
from .generation.caches import GenerationCaches
from .generation.options import GenerationOptions
from .generation.prompt import prepare_prompt
from .generation.response import GenerationResponse, GenerationResult
from .generation.session import ChatSession
from .model import Model
from .processing.chat_template import RenderedPrompt
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
        progress: called with how far images and prompt have come.
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
        processor, prompt, sources, system, request, model=model, cancel=cancel,
        known=None if caches is None else caches.images,
    )  # fmt: skip
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
    add_question_arguments(parser)
    group = parser.add_argument_group("output")
    group.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="show the answer while it is made",
    )
    group.add_argument("--json", action="store_true", help="print one JSON object per answer")
    group.add_argument("--verbose", action="store_true", help="show speeds and memory")
    group.add_argument("--quiet", action="store_true", help="show no progress")
    group.add_argument(
        "--prompt-cache-file", metavar="FILE",
        help="continue the conversation in this file, if it exists, and save it there",
    )  # fmt: skip
    add_model_arguments(parser)
    add_generation_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Answer all questions, and return the exit code.

    One that cannot be answered ends the command only if it is the only one.
    """
    options = generation_options(arguments)
    if "schema" in options and arguments.prefill_response is not None:
        raise RequestError("--schema and --prefill-response exclude each other")
    questions = read_questions(arguments)
    code = EXIT_OK
    with ProgressBars(wants_progress(arguments.quiet)) as bars:
        model, processor = load_model(arguments, bars)
        options |= extra_stop_tokens(processor, arguments.extra_eos_token)
        caches = GenerationCaches() if len(questions) > 1 else None
        session = _open_session(model, processor, arguments, options)
        for question in questions:
            if len(questions) > 1 and not arguments.json:
                print(printable(question.title), file=sys.stderr)
            content = question.content(
                prompt_first=arguments.prompt_first, image_labels=arguments.image_labels
            )
            try:
                if session is not None:
                    responses = session.ask(content, list(question.images), progress=bars.show)
                else:
                    prompt = prefilled_prompt(processor, question, content, arguments)
                    responses = stream_generate(
                        model, processor, prompt, list(question.images),
                        system=None if isinstance(prompt, RenderedPrompt) else arguments.system,
                        caches=caches, progress=bars.show, **options,
                    )  # fmt: skip
                result = _answer(responses, arguments)
            except JvlmError as error:
                if len(questions) == 1:
                    raise
                print(f"error: {printable(str(error))}", file=sys.stderr)
                code = EXIT_ERROR
                continue
            if result is None or result.finish_reason == "cancelled":
                return EXIT_INTERRUPTED
            if "schema" in options and result.finish_reason != "stop":
                print(
                    f"error: the answer ends early ({result.finish_reason}), so it is no whole"
                    " JSON; raise --max-tokens", file=sys.stderr,
                )  # fmt: skip
                code = EXIT_ERROR
            if session is not None:
                session.save(local_path(arguments.prompt_cache_file, SessionError))
    return code


def _open_session(
    model: Model, processor: Processor, arguments: argparse.Namespace, options: dict[str, Any]
) -> ChatSession | None:
    """Return the conversation that --prompt-cache-file names, a new one if it does not exist."""
    if arguments.prompt_cache_file is None:
        return None
    if arguments.prefill_response is not None:
        raise RequestError("--prompt-cache-file and --prefill-response exclude each other")
    file = local_path(arguments.prompt_cache_file, SessionError)
    if not file.exists():
        return ChatSession(model, processor, arguments.system, **options)
    if arguments.system is not None:
        raise RequestError(f"--system: the conversation in {file} has its own system message")
    return ChatSession.load(file, model, processor, **options)


def _answer(
    responses: Generator[GenerationResponse, None, None], arguments: argparse.Namespace
) -> GenerationResult | None:
    """Print an answer and return it; after Ctrl-C what there is of it, if anything."""
    stream = arguments.stream and not arguments.json
    received: list[GenerationResponse] = []
    interrupted = False
    with closing(responses):
        try:
            for response in responses:
                received.append(response)
                if stream:
                    print(response.text, end="", flush=True)
        except KeyboardInterrupt:
            interrupted = True
    if not received:
        return None
    result = GenerationResult.collect(received)
    if interrupted:
        result = dataclasses.replace(result, finish_reason="cancelled")
    if arguments.json:
        print(json_line(dataclasses.asdict(result)))
    else:
        print("" if stream else result.text, flush=True)
    if arguments.verbose:
        print(summarize(result), file=sys.stderr)
    return result


if __name__ == "__main__":
    # The module that the package has imported does the work, not this second copy of it.
    sys.exit(run_subcommand("generate"))
