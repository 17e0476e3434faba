"""From what a caller gives, a text or messages and images, to checked tokens and images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ImageError, PromptError
from ..model import Model
from ..processing.chat_template import RenderedPrompt
from ..processing.image_tokens import image_tokens
from ..processing.inputs import ModelInputs, Row, collate, place_images
from ..processing.messages import collect_images
from ..processing.processor import Processor
from .encoded_image import EncodedImage
from .image_encoding import PromptImage, open_prompt_image
from .options import GenerationOptions
from .prompt_key import ImageSpan, PromptKey

Prompt = str | Sequence[dict[str, Any]]
"""The words of a single question, a rendered prompt, or the messages of a conversation."""


@dataclass(frozen=True, eq=False)
class PreparedPrompt:
    """A single prompt, ready for the model."""

    token_ids: npt.NDArray[np.int32]
    """(L,) all tokens, those of images included."""
    starts: tuple[int, ...]
    """Where each image's first token stands."""
    images: tuple[PromptImage, ...]
    """In the order of the prompt; opened, or encoded already."""

    @property
    def tiles(self) -> tuple[int, ...]:
        """Tiles of each image."""
        return tuple(image.layout.num_tiles for image in self.images)

    @property
    def image_tokens(self) -> int:
        """Tokens that stand for images."""
        return sum(image.layout.num_tokens for image in self.images)

    def key(self) -> PromptKey:
        """Return what caches know the prompt by."""
        return PromptKey.of(
            self.token_ids.tolist(),
            [
                ImageSpan(start, image.layout.num_tokens, image.digest)
                for start, image in zip(self.starts, self.images, strict=True)
            ],
        )

    @property
    def inputs(self) -> ModelInputs:
        """The same prompt as arguments of the model's own call.

        Raises:
            ImageError: an image has been encoded already, and its pixels are gone.
        """
        images = []
        for image in self.images:
            if isinstance(image, EncodedImage):
                raise ImageError(f"{image.name} is encoded already; give the image itself")
            images.append(image.cut())
        return collate([Row(self.token_ids, self.starts, tuple(images))])


def prepare_prompt(
    processor: Processor,
    prompt: Prompt,
    images: Any,
    system: str | None,
    options: GenerationOptions,
) -> PreparedPrompt:
    """Render, tokenize and open opened_images.

    Args:
        processor: of the checkpoint.
        prompt: words of a single question, in front of which all opened_images go, as in the
            original; or messages, whose image parts say where opened_images go; or a prompt that
            `processor.apply_chat_template` returned.
        images: an image or a list of them, of any kind the processor opens or encoded
            already, or None.
        system: words of a system message in front, or None.
        options: limits on opened_images.

    Raises:
        PromptError: words, opened_images and placeholders do not fit together.
        ImageError: an image cannot be used.
    """
    sources = as_list(images)
    if isinstance(prompt, RenderedPrompt):
        if system is not None:
            raise PromptError("system: the prompt is rendered already; put it into the messages")
        text = prompt
    else:
        if isinstance(prompt, str):
            parts = [{"type": "image"} for _ in sources] + [{"type": "text", "text": prompt}]
            messages: list[dict[str, Any]] = [{"role": "user", "content": parts}]
        else:
            messages = list(prompt)
        if system is not None:
            messages = [{"role": "system", "content": system}, *messages]
        sources = collect_images(messages, sources or None)
        text = processor.apply_chat_template(messages)
    ids = processor.encode(text, len(sources))
    opened_images = tuple(
        open_prompt_image(processor, source, options.image_limits) for source in sources
    )
    token_ids, starts = place_images(
        ids,
        [image_tokens(image.layout, image.config, image.token_ids) for image in opened_images],
        processor.tokenizer.image_token_ids.image,
    )
    return PreparedPrompt(token_ids, starts, opened_images)


def as_list(images: Any) -> list[Any]:
    """Return images as a list; a single one need not be wrapped."""
    if images is None:
        return []
    return list(images) if isinstance(images, list | tuple) else [images]


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
