"""A prompt prepared for the model, the key that caches find it by, and the room for an answer."""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

from ..errors import PromptError
from ..model import Model
from ..processing.image_digests import ImageDigests
from ..processing.image_processor import PromptImage
from ..processing.inputs import PreparedPrompt
from ..processing.processor import Processor, Prompt
from .options import GenerationOptions


class ImageSpan(NamedTuple):
    """The tokens of an image in a prompt."""

    start: int
    """Index of its first token."""
    length: int
    """How many tokens it has."""
    digest: str
    """Of its pixels and config."""


@dataclass(frozen=True)
class PromptKey:
    """Text by its tokens, images by their digests.

    An image is a single element however many tokens it has. So two images never share
    anything, though their tokens are the same, and nothing ever ends inside an image:

        tokens    BOS  User  :   start p p column p p column end   What  is
        elements  511  17    25  "9f3c..."                         88    12
        lengths   1    1     1   8                                 1     1
    """

    elements: tuple[int | str, ...]
    lengths: tuple[int, ...]
    """Tokens that each element represents."""

    @classmethod
    def of(cls, token_ids: Sequence[int], images: Iterable[ImageSpan]) -> "PromptKey":
        """Make the key of a prompt; `images` in order."""
        elements: list[int | str] = []
        lengths: list[int] = []
        taken = 0
        for start, length, digest in images:
            elements += [*token_ids[taken:start], digest]
            lengths += [*[1] * (start - taken), length]
            taken = start + length
        elements += token_ids[taken:]
        lengths += [1] * (len(token_ids) - taken)
        return cls(tuple(elements), tuple(lengths))

    def __len__(self) -> int:
        """Elements, not tokens."""
        return len(self.elements)

    @property
    def num_tokens(self) -> int:
        """Tokens of all elements."""
        return sum(self.lengths)

    def first(self, count: int) -> "PromptKey":
        """Return the first `count` elements."""
        return PromptKey(self.elements[:count], self.lengths[:count])

    def within(self, num_tokens: int) -> "PromptKey":
        """Return as many whole elements as have at most `num_tokens` tokens."""
        return self.first(sum(end <= num_tokens for end in accumulate(self.lengths)))

    def extended(self, token_ids: Sequence[int]) -> "PromptKey":
        """Return the key of this prompt with text tokens appended."""
        return PromptKey((*self.elements, *token_ids), (*self.lengths, *[1] * len(token_ids)))


def prepare_prompt(
    processor: Processor,
    prompt: Prompt,
    images: Any,
    system: str | None,
    options: GenerationOptions,
    *,
    model: Model | None = None,
    cancel: threading.Event | None = None,
    known: ImageDigests | None = None,
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
        known=known,
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
