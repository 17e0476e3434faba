"""Answers as streams, token by token, and as a whole."""

import threading
import time
from collections.abc import Generator
from typing import Any

from ..model import Model
from ..processor import Processor
from ..reuse.caches import GenerationCaches
from .answer import Answer
from .options import GenerationOptions
from .pictures import Progress
from .prompt import Prompt, prepare_prompt
from .results import GenerationPiece, GenerationResult


def stream_generate(
    model: Model,
    processor: Processor,
    prompt: Prompt,
    images: Any = None,
    *,
    system: str | None = None,
    caches: GenerationCaches | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
    **options: Any,
) -> Generator[GenerationPiece, None, None]:
    """Answer a prompt, token by token.

    Everything that can be wrong with the request is checked, and pictures are opened, before
    this returns; the work starts with the first piece. Closing the iterator, or
    setting `cancel`, stops the work within one token (while pictures are encoded or the prompt
    is read: within one group of tiles or one step of the prefill) and frees the cache.

    May be called from several threads: they take turns on the device, token by token.

    Args:
        model: from `load`.
        processor: from `load`.
        prompt: a question, or messages with roles and content parts, or what
            `processor.apply_chat_template` returned.
        images: a picture or a list: path, URL, data URI, bytes, file object, PIL image,
            array, or what `encode_image` returned. In front of the words of a question; for
            messages, they fill image parts in order.
        system: a system message in front.
        caches: what earlier answers left there is not computed again, and this answer adds to
            it. The tokens are those of an answer without.
        progress: told how far pictures and prompt have come.
        cancel: set it, from any thread, to end the answer; its last piece then has the finish
            reason `cancelled`.
        **options: see `GenerationOptions`.

    Yields:
        One piece for each token; the last one has a finish reason.

    Raises:
        JvlmError: bad options, prompt or pictures, with one line that says what to do.
    """
    start = time.perf_counter()
    request = GenerationOptions(**options)
    prepared = prepare_prompt(processor, prompt, images, system, request)
    return Answer(
        model,
        processor,
        prepared,
        request,
        caches=caches,
        progress=progress,
        cancel=cancel,
        start=start,
    ).pieces()


def generate(
    model: Model,
    processor: Processor,
    prompt: Prompt,
    images: Any = None,
    **arguments: Any,
) -> GenerationResult:
    """Answer a prompt and return the whole; arguments and errors as `stream_generate`."""
    return GenerationResult.collect(
        list(stream_generate(model, processor, prompt, images, **arguments))
    )
