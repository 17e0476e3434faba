"""Messages, texts and images to model inputs: the one way that everything takes."""

import logging
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..config.image_config import ImageOptions
from ..errors import PromptError, RequestError
from .chat_template import ChatTemplate, RenderedPrompt
from .image_digests import ImageDigests
from .image_processor import ImageProcessor, PromptImage
from .inputs import ModelInputs, PreparedPrompt, collate, place_images
from .messages import collect_images, expand_images, question
from .sources import DEFAULT_LIMITS, SourceLimits
from .tiling import ImageLayout
from .tokenizer import IMAGE_PLACEHOLDER, Tokenizer

logger = logging.getLogger(__name__)

Messages = Sequence[Mapping[str, Any]]
Prompt = str | Messages
"""The text of a single question, a rendered prompt, or the messages of a conversation."""


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
        self.generation_defaults: dict[str, Any] = {}
        """Options of a request where it does not say, as the checkpoint has them."""

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        images: Any = None,
        *,
        options: ImageOptions | None = None,
        padding: bool | str = True,
        return_tensors: str | None = None,
        parse_special_tokens: bool = False,
        **overrides: Any,
    ) -> ModelInputs:
        """Return the model inputs of one prompt or several.

        Every `<|image|>` is replaced by the tokens of the next image of its prompt; a prompt
        without any gets all its images in front. One BOS precedes everything. (The reference
        implementation places the features of the second and later images in front one token too
        early, on no patch of theirs; here they are on their patches, as with placeholders.)

        In a prompt made by `apply_chat_template` the special tokens of the template are
        special and all text of the messages is text. In any other text, only `<|image|>` is
        special unless `parse_special_tokens` is set.

        Args:
            text: one prompt or a list of them. Images may come first, as in transformers, unless
                both are strings.
            images: for one prompt an image or a list; for several a list of one image each, or
                of a list each. Sources as `read_image` takes them.
            options: of images; None: the checkpoint's.
            padding: shorter prompts are padded on the left; False refuses different lengths.
            return_tensors: `np` (the default) or `mlx`.
            parse_special_tokens: whether special tokens spelled in a plain text are meant.
            **overrides: single options of images by name, see `ImageOptions`.

        Raises:
            PromptError: a prompt's placeholders and images differ in number.
            ImageError: an image cannot be opened or has a size the model cannot take.
            RequestError: an option is out of range.
        """
        if _are_images(text):
            text, images = images, text  # as transformers' processors order them
        if text is None:
            raise PromptError("there is no text; give a prompt beside the images")
        texts = list(text) if isinstance(text, Iterable) and not isinstance(text, str) else [text]
        if not texts:
            raise PromptError("there is no prompt; give at least one")
        options = ImageOptions.of(options, overrides)
        # All counts are known to fit before the first image is opened.
        encoded = [
            (self.encode(one, len(own), parse_special_tokens=parse_special_tokens), own)
            for one, own in zip(texts, _images_per_text(len(texts), images), strict=True)
        ]
        prompts = [self._place(ids, own, options) for ids, own in encoded]
        if padding in (False, "do_not_pad") and len({len(one.token_ids) for one in prompts}) > 1:
            raise PromptError("the prompts differ in length; padding must be True")
        return collate(prompts).to(return_tensors)

    def apply_chat_template(
        self,
        messages: Messages,
        add_generation_prompt: bool = True,
        *,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = None,
        images: Any = None,
        **overrides: Any,
    ) -> Any:
        """Return the prompt of a conversation: as text, as token ids or as model inputs.

        Args:
            messages: the conversation, see `messages.py`.
            add_generation_prompt: whether to end with what an answer follows.
            tokenize: False: return a `RenderedPrompt`, see `ChatTemplate.render`.
            return_dict: with `tokenize`: return `ModelInputs`; False: the token ids alone, a list
                or, with `return_tensors`, an array (1, L).
            return_tensors: `np` or `mlx`.
            images: with `tokenize`: images for the image parts that name no source, in order.
            **overrides: with `tokenize`: options of images by name, see `ImageOptions`.

        Raises:
            PromptError: a message is malformed, or the template refuses the conversation.
            ImageError: an image cannot be opened or has a size the model cannot take.
            RequestError: an option is out of range.
        """
        if not tokenize:
            return self.template.render(messages, add_generation_prompt)
        prepared = self.prepare(
            messages,
            images,
            options=ImageOptions.of(None, overrides),
            add_generation_prompt=add_generation_prompt,
        )
        if return_dict:
            return prepared.inputs.to(return_tensors)
        if return_tensors is None:
            return prepared.token_ids.tolist()
        without_images = PreparedPrompt[PromptImage](prepared.token_ids, (), ())
        return without_images.inputs.to(return_tensors).input_ids

    def from_messages(
        self,
        messages: Messages,
        add_generation_prompt: bool = True,
        images: Any = None,
        **overrides: Any,
    ) -> ModelInputs:
        """Return the model inputs of one conversation; as `apply_chat_template` that tokenizes."""
        inputs: ModelInputs = self.apply_chat_template(
            messages,
            add_generation_prompt,
            tokenize=True,
            return_dict=True,
            images=images,
            **overrides,
        )
        return inputs

    def prepare(
        self,
        prompt: Prompt,
        images: Any = None,
        *,
        system: str | None = None,
        options: ImageOptions | None = None,
        add_generation_prompt: bool = True,
        context_size: int | None = None,
        limits: SourceLimits = DEFAULT_LIMITS,
        cancel: threading.Event | None = None,
        known: ImageDigests | None = None,
    ) -> PreparedPrompt[PromptImage]:
        """Render and tokenize a prompt, and open its images.

        Of all images the sizes are read first. So a prompt that is too long is refused before
        anything is decoded.

        Args:
            prompt: the text of a single question, in front of which all images go, as in the
                reference implementation; or messages, whose image parts say where images go; or
                a prompt that `apply_chat_template` returned.
            images: an image or a list of them, of any kind that is opened or has been opened or
                encoded already.
            system: a system message in front.
            options: of images; None: the checkpoint's.
            add_generation_prompt: whether messages end with what an answer follows.
            context_size: tokens that prompt and answer may have together.
            limits: of images of strangers.
            cancel: ends the opening of images with a RequestError when it is set.
            known: images that were opened before; see `ImageProcessor.open`.

        Raises:
            PromptError: text, images and placeholders do not fit together, or are too long.
            ImageError: an image cannot be used.
            RequestError: an option contradicts the checkpoint's, or `cancel` is set.
        """
        sources = as_list(images)
        if isinstance(prompt, RenderedPrompt):
            if system is not None:
                raise PromptError(
                    "system: the prompt is rendered already; put it into the messages"
                )
            text = prompt
        else:

            def expand(source: Any) -> list[Any]:
                return self.image_processor.expand(source, options, limits, cancel)

            if isinstance(prompt, str):
                if self.template.has_rendered(prompt):
                    logger.warning(
                        "the prompt looks rendered already, and is taken for the text of a"
                        " question; give the question alone, or what apply_chat_template"
                        " returned as it is"
                    )
                messages: Messages = question(prompt, sources)
                sources = []
            else:
                messages = prompt
            messages = expand_images(messages, expand)
            if system is not None:
                messages = [{"role": "system", "content": system}, *messages]
            sources = collect_images(messages, sources or None)
            text = self.template.render(messages, add_generation_prompt)
        if context_size is not None and self.tokenizer.is_longer(text, context_size):
            raise PromptError(
                f"the prompt has {len(text)} characters, more than the model's context of"
                f" {context_size} tokens can hold; shorten it"
            )
        ids = self.encode(text, len(sources))
        return self._place(ids, sources, options, context_size, limits, cancel, known)

    def image_layout(
        self, width: int, height: int, options: ImageOptions | None = None, **overrides: Any
    ) -> ImageLayout:
        """Return how an image of this many pixels would be tiled, without having it."""
        return self.image_processor.layout(width, height, options, **overrides)

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
        try:
            return np.array([self.tokenizer.bos_token_id, *ids], dtype=np.int32)
        except OverflowError:
            raise PromptError(
                f"the tokenizer has a token {max(ids)}, which no model has; take tokenizer and"
                " weights from the same checkpoint"
            ) from None

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Return the text of token ids, by default without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens)

    def batch_decode(
        self, sequences: Iterable[Iterable[int]], skip_special_tokens: bool = True
    ) -> list[str]:
        """Return the text of each of several sequences of token ids."""
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    def _place(
        self,
        ids: NDArray[np.int32],
        sources: Sequence[Any],
        options: ImageOptions | None,
        context_size: int | None = None,
        limits: SourceLimits = DEFAULT_LIMITS,
        cancel: threading.Event | None = None,
        known: ImageDigests | None = None,
    ) -> PreparedPrompt[PromptImage]:
        """Open images and put their tokens in place of the placeholders."""
        images = []
        for source in sources:
            _check(cancel)
            images.append(self.image_processor.open(source, options, limits, cancel, known))
        prompt = place_images(ids, images, self.tokenizer.image_token_ids.image)
        if context_size is not None and len(prompt.token_ids) >= context_size:
            raise PromptError(
                f"the prompt has {len(prompt.token_ids)} tokens, {prompt.image_tokens} of them for"
                f" images, and the model's context of {context_size} must hold the answer too:"
                " shorten the text, send fewer images, or lower max_crops"
            )
        for image in images:
            _check(cancel)
            image.load()
        return prompt


def as_list(images: Any) -> list[Any]:
    """Return images as a list; a single one need not be wrapped."""
    if images is None:
        return []
    return list(images) if isinstance(images, list | tuple) else [images]


def _are_images(value: Any) -> bool:
    """Return whether this is an image or a list of them, as no text can be."""
    if isinstance(value, list | tuple):
        return bool(value) and all(_are_images(one) for one in value)
    if isinstance(value, np.ndarray):
        return value.ndim > 1
    return isinstance(value, Image.Image | os.PathLike | bytes | bytearray | memoryview)


def _check(cancel: threading.Event | None) -> None:
    if cancel is not None and cancel.is_set():
        raise RequestError("the request was canceled while its images were opened")


def _images_per_text(count: int, images: Any) -> list[list[Any]]:
    """Bring `images` to one list per text."""
    if images is None:
        return [[] for _ in range(count)]
    given = as_list(images)
    nested = [isinstance(entry, list | tuple) for entry in given]
    if not any(nested):
        if count == 1:
            return [given]
        if len(given) == count:
            return [[image] for image in given]
    if len(given) != count or not all(nested):
        raise PromptError(
            f"images must have one image or one list of images for each of the {count} texts,"
            f" found {sum(nested)} lists among {len(given)} entries"
        )
    return [list(entry) for entry in given]
