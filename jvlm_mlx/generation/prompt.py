"""From what a caller gives, a text or messages and pictures, to checked tokens and pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ImageError, PromptError
from ..processing.image_tokens import image_tokens
from ..model import Model
from ..processing.inputs import ModelInputs, Row, collate, place_images
from ..processing.processor import Processor
from .encoded_image import EncodedImage
from .prompt_key import PictureSpan, PromptKey
from ..processing.messages import collect_images
from ..processing.chat_template import RenderedPrompt
from .options import GenerationOptions
from .image_encoding import Picture, open_picture

Prompt = str | Sequence[dict[str, Any]]
"""The words of a single question, a rendered prompt, or the messages of a conversation."""


@dataclass(frozen=True, eq=False)
class PreparedPrompt:
    """A single prompt, ready for the model."""

    token_ids: npt.NDArray[np.int32]
    """(L,) all tokens, those of pictures included."""
    starts: tuple[int, ...]
    """Where each picture's first token stands."""
    pictures: tuple[Picture, ...]
    """In the order of the prompt; opened, or encoded already."""

    @property
    def tiles(self) -> tuple[int, ...]:
        """Tiles of each picture."""
        return tuple(picture.layout.num_tiles for picture in self.pictures)

    @property
    def image_tokens(self) -> int:
        """Tokens that stand for pictures."""
        return sum(picture.layout.num_tokens for picture in self.pictures)

    def key(self) -> PromptKey:
        """Return what caches know the prompt by."""
        return PromptKey.of(
            self.token_ids.tolist(),
            [
                PictureSpan(start, picture.layout.num_tokens, picture.digest)
                for start, picture in zip(self.starts, self.pictures, strict=True)
            ],
        )

    @property
    def inputs(self) -> ModelInputs:
        """The same prompt as arguments of the model's own call.

        Raises:
            ImageError: a picture has been encoded already, and its pixels are gone.
        """
        images = []
        for picture in self.pictures:
            if isinstance(picture, EncodedImage):
                raise ImageError(f"{picture.name} is encoded already; give the picture itself")
            images.append(picture.cut())
        return collate([Row(self.token_ids, self.starts, tuple(images))])


def prepare_prompt(
    processor: Processor,
    prompt: Prompt,
    images: Any,
    system: str | None,
    options: GenerationOptions,
) -> PreparedPrompt:
    """Render, tokenize and open pictures.

    Args:
        processor: of the checkpoint.
        prompt: words of a single question, in front of which all pictures go, as in the
            original; or messages, whose image parts say where pictures go; or a prompt that
            `processor.apply_chat_template` returned.
        images: a picture or a list of them, of any kind the processor opens or encoded
            already, or None.
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
    pictures = tuple(open_picture(processor, source, options.image_limits) for source in sources)
    token_ids, starts = place_images(
        ids,
        [image_tokens(picture.layout, picture.settings, picture.token_ids) for picture in pictures],
        processor.tokenizer.image_token_ids.image,
    )
    return PreparedPrompt(token_ids, starts, pictures)


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
