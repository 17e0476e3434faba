"""Texts and images to model inputs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import PromptError
from .chat_template import ChatTemplate, RenderedPrompt
from .image_processor import ImageProcessor
from .inputs import ModelInputs, Row, collate, place_images
from .messages import collect_images
from .tiling import ImageLayout
from .tokenizer import IMAGE_PLACEHOLDER, Tokenizer


class Processor:
    """Tokenizer, chat template and image processor of a checkpoint together.

    All methods may be called from any thread.
    """

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate, image_processor: ImageProcessor
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.image_processor = image_processor

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True
    ) -> RenderedPrompt:
        """Return the prompt text of a conversation; see `ChatTemplate.render`."""
        return self.template.render(messages, add_generation_prompt)

    def image_layout(
        self,
        width: int,
        height: int,
        *,
        max_crops: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> ImageLayout:
        """Return how an image of this many pixels would be tiled, without having it."""
        return self.image_processor.layout(
            width, height, max_crops=max_crops, min_pixels=min_pixels, max_pixels=max_pixels
        )

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids without special tokens."""
        return self.tokenizer.decode(ids)

    def from_messages(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        images: Sequence[Any] | None = None,
        *,
        max_crops: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> ModelInputs:
        """Return the model inputs of one conversation.

        Args:
            messages: the conversation, see `text/messages.py`.
            add_generation_prompt: whether to end with what an answer follows.
            images: images for the image parts that name no source, in order.
            max_crops: most tiles of an image; None: the checkpoint's.
            min_pixels: area below which an image is enlarged; None: the checkpoint's.
            max_pixels: area above which an image is reduced; None: the checkpoint's.

        Raises:
            PromptError: a message is malformed, or images and their places differ.
            ImageError: an image cannot be opened or has a size the model cannot take.
            RequestError: a limit on images is out of range.
        """
        sources = collect_images(messages, images)
        prompt = self.apply_chat_template(messages, add_generation_prompt)
        return self(
            [prompt],
            [sources],
            max_crops=max_crops,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
        )

    def __call__(
        self,
        text: str | Sequence[str],
        images: Sequence[Any] | None = None,
        *,
        max_crops: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        parse_special_tokens: bool = False,
    ) -> ModelInputs:
        """Return the model inputs of one prompt or several.

        Every `<|image|>` is replaced by the tokens of the next image of its prompt; a prompt
        without any gets all its images in front. One BOS precedes everything. (The original
        places the features of the second and later images in front one token too early, on
        no patch of theirs; here they are on their patches, as with placeholders.)

        In a prompt made by `apply_chat_template` the special tokens of the template are
        special and all words of the messages are words. In any other text, only `<|image|>` is
        special unless `parse_special_tokens` is set.

        Args:
            text: one prompt or a list of them.
            images: a list of images per prompt; for a single prompt also just its list.
                Sources as the image processor takes them.
            max_crops: most tiles of an image; None: the checkpoint's.
            min_pixels: area below which an image is enlarged; None: the checkpoint's.
            max_pixels: area above which an image is reduced; None: the checkpoint's.
            parse_special_tokens: whether special tokens spelled in a plain text are meant.

        Raises:
            PromptError: a prompt's placeholders and images differ in number.
            ImageError: an image cannot be opened or has a size the model cannot take.
            RequestError: a limit on images is out of range.
        """
        texts = [text] if isinstance(text, str) else list(text)
        if not texts:
            raise PromptError("there is no prompt; give at least one")
        sources = _images_per_text(len(texts), images)
        # All counts are known to fit before the first image is opened.
        encoded = [
            self.encode(one, len(row_sources), parse_special_tokens=parse_special_tokens)
            for one, row_sources in zip(texts, sources, strict=True)
        ]
        rows = []
        for ids, row_sources in zip(encoded, sources, strict=True):
            images_of_row = tuple(
                self.image_processor(
                    source, max_crops=max_crops, min_pixels=min_pixels, max_pixels=max_pixels
                )
                for source in row_sources
            )
            tokens, starts = place_images(
                ids,
                [image.image_tokens for image in images_of_row],
                self.tokenizer.image_token_ids.image,
            )
            rows.append(Row(tokens, starts, images_of_row))
        return collate(rows)

    def encode(
        self, text: str, num_images: int, *, parse_special_tokens: bool = False
    ) -> NDArray[np.int32]:
        """Return the tokens of a prompt, BOS first and placeholders in place of images.

        Args:
            text: as in a call.
            num_images: images that go into it.
            parse_special_tokens: as in a call.

        Returns:
            (L,) with as many placeholders as images, or none.

        Raises:
            PromptError: placeholders and images differ in number.
        """
        if isinstance(text, RenderedPrompt):
            ids = self.tokenizer.encode(text, text.literals)
        elif isinstance(text, str):
            special = None if parse_special_tokens else (IMAGE_PLACEHOLDER,)
            ids = self.tokenizer.encode(text, special_tokens=special)
        else:
            raise PromptError(f"a prompt must be a text, found type {type(text).__name__}")
        placeholders = ids.count(self.tokenizer.image_token_ids.image)
        if placeholders not in (0, num_images):
            raise PromptError(
                f"the prompt has {placeholders} {IMAGE_PLACEHOLDER} placeholders,"
                f" but {num_images} images were given"
            )
        return np.array([self.tokenizer.bos_token_id, *ids], dtype=np.int32)


def _images_per_text(count: int, images: Sequence[Any] | None) -> list[list[Any]]:
    """Bring `images` to one list per text."""
    if images is None:
        return [[] for _ in range(count)]
    if not isinstance(images, list | tuple):
        raise PromptError(
            "images must be a list of images, or a list with one such list per text,"
            f" found type {type(images).__name__}"
        )
    nested = [isinstance(entry, list | tuple) for entry in images]
    if count == 1 and not any(nested):
        return [list(images)]
    if len(images) != count or not all(nested):
        raise PromptError(
            f"images must have one list of images for each of the {count} texts,"
            f" found {sum(nested)} lists among {len(images)} entries"
        )
    return [list(entry) for entry in images]
