"""A prompt prepared for the model, as caches know it, and the room it leaves for an answer."""

import threading
from typing import Any

from ..errors import PromptError
from ..model import Model
from ..processing.image_processor import PromptImage
from ..processing.inputs import PreparedPrompt
from ..processing.processor import Processor, Prompt
from .options import GenerationOptions
from .prompt_key import ImageSpan, PromptKey


def prepare_prompt(
    processor: Processor,
    prompt: Prompt,
    images: Any,
    system: str | None,
    options: GenerationOptions,
    *,
    model: Model | None = None,
    cancel: threading.Event | None = None,
) -> PreparedPrompt[PromptImage]:
    """Return what `Processor.prepare` makes of a request; arguments and errors as there.

    With the model, a prompt that fills its context is refused before an image is decoded.
    """
    return processor.prepare(
        prompt,
        images,
        system=system,
        options=options.image_options,
        context_size=None if model is None else model.config.decoder.context_size,
        cancel=cancel,
    )


def prompt_key(prompt: PreparedPrompt[PromptImage]) -> PromptKey:
    """Return what caches know a prompt by."""
    return PromptKey.of(
        prompt.token_ids.tolist(),
        [
            ImageSpan(start, image.layout.num_tokens, image.digest)
            for start, image in zip(prompt.starts, prompt.images, strict=True)
        ],
    )


def answer_length(model: Model, prompt_tokens: int, options: GenerationOptions) -> int:
    """Return the most tokens an answer can have within the model's context.

    Raises:
        PromptError: the prompt alone fills the context.
    """
    context = model.config.decoder.context_size
    if prompt_tokens >= context:
        raise PromptError(
            f"the prompt has {prompt_tokens} tokens, and the model's context of {context} must"
            " hold the answer too: shorten the text, send fewer images, or lower max_crops"
        )
    return min(options.max_tokens, context - prompt_tokens)
