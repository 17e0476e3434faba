"""From what a caller gives, a text or messages and pictures, to checked model inputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import PromptError
from ..model import Model
from ..processor import ModelInputs, Processor
from ..text.template import RenderedPrompt
from .options import GenerationOptions

Prompt = str | Sequence[dict[str, Any]]
"""The words of a single question, a rendered prompt, or the messages of a conversation."""


@dataclass(frozen=True)
class PreparedPrompt:
    """A single prompt, ready for the model."""

    inputs: ModelInputs

    @property
    def token_ids(self) -> npt.NDArray[np.integer]:
        """(L,) the prompt's tokens."""
        return self.inputs.input_ids[0]

    @property
    def tiles(self) -> tuple[int, ...]:
        """Tiles of each picture."""
        return tuple(layout.num_tiles for layout in self.inputs.layouts[0])

    @property
    def image_tokens(self) -> int:
        """Tokens that stand for pictures."""
        return sum(layout.num_tokens for layout in self.inputs.layouts[0])


def prepare_prompt(
    processor: Processor,
    prompt: Prompt,
    images: Any,
    system: str | None,
    options: GenerationOptions,
) -> PreparedPrompt:
    """Render, tokenize and cut pictures into tiles.

    Args:
        processor: of the checkpoint.
        prompt: words of a single question, in front of which all pictures go, as in the
            original; or messages, whose image parts say where pictures go; or a prompt that
            `processor.apply_chat_template` returned.
        images: a picture or a list of them, of any kind the processor opens, or None.
        system: words of a system message in front, or None.
        options: limits on pictures.

    Raises:
        PromptError: words, pictures and placeholders do not fit together.
        ImageError: a picture cannot be used.
    """
    sources = as_list(images)
    if isinstance(prompt, RenderedPrompt):
        if system is not None:
            raise PromptError("system: the prompt is rendered already; put it into the messages")
        return PreparedPrompt(processor(text=[prompt], images=[sources], **options.image_limits))
    if isinstance(prompt, str):
        parts = [{"type": "image"} for _ in sources] + [{"type": "text", "text": prompt}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": parts}]
    else:
        messages = list(prompt)
    if system is not None:
        messages = [{"role": "system", "content": system}, *messages]
    return PreparedPrompt(
        processor.from_messages(messages, images=sources or None, **options.image_limits)
    )


def as_list(images: Any) -> list[Any]:
    """Return pictures as a list; a single one need not be wrapped."""
    if images is None:
        return []
    return list(images) if isinstance(images, list | tuple) else [images]


def answer_length(model: Model, prompt_tokens: int, options: GenerationOptions) -> int:
    """Return the most tokens an answer can have within the model's context.

    Raises:
        PromptError: the prompt alone fills the context.
    """
    context = model.settings.decoder.context_size
    if prompt_tokens >= context:
        raise PromptError(
            f"the prompt has {prompt_tokens} tokens, and the model's context of {context} must"
            " hold the answer too: shorten the text, send fewer pictures, or lower max_crops"
        )
    return min(options.max_tokens, context - prompt_tokens)
