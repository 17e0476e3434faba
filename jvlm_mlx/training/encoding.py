"""A conversation as tokens, with what is learned of it.

The tokens are those of generation: before every answer comes exactly what generation reads there,
token for token, and the answer is tokenized as it continues that.

The released template does not write how an answer ends when the conversation continues. There the
stop token is what is to be learned, and what is read is the start of the next question.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, PromptError
from ..processing.chat_template import RenderedPrompt
from ..processing.messages import Message
from ..processing.processor import Processor
from .examples import ASSISTANT, Conversation, count_images

IGNORED = -1
"""Label of a token that is not learned."""
_PROBE = "answer"
_CACHED_PROMPTS = 256
"""Prompts whose tokens are cached: captions all answer the same few questions."""

Prompt = tuple[RenderedPrompt, list[int]]


class EncodedConversation(NamedTuple):
    """Tokens of a conversation before its images are put in. N tokens."""

    token_ids: NDArray[np.int32]
    """(N,) BOS first, one placeholder for every image."""
    labels: NDArray[np.int32]
    """(N,) the token to be predicted in this place, from the ones before it; -1: nothing."""


class ConversationEncoder:
    """Encodes conversations by a checkpoint's chat template.

    Raises:
        DataError: the template does not write an answer behind the prompt that asks for it, so
            what is learned would not be what is generated.
    """

    stop_token_id: int
    """What ends an answer: the template's stop token, else the tokenizer's end of text."""

    def __init__(self, processor: Processor) -> None:
        self._processor = processor
        tokenizer = processor.tokenizer
        asked, answered = Message("user", "question"), Message(ASSISTANT, _PROBE)
        try:
            prompt = self._render([asked], add_generation_prompt=True)
            whole = self._render([asked, answered], add_generation_prompt=False)
        except PromptError as error:
            raise DataError(f"the checkpoint cannot be trained on conversations: {error}") from None
        rest = whole[len(prompt) :]
        if not whole.startswith(prompt) or rest.count(_PROBE) != 1:
            raise DataError(
                "the checkpoint's chat template does not write an answer behind the prompt that"
                " asks for it; training needs a template that does"
            )
        self._tail = rest.partition(_PROBE)[2]
        stops = [
            (self._tail.index(spelling) + len(spelling), token)
            for spelling, token in tokenizer.special_tokens.items()
            if token in tokenizer.stop_token_ids and spelling in self._tail
        ]
        self._writes_stop = bool(stops)
        end_of_text = tokenizer.named_tokens.get("eos_token", "")
        self._num_learned, self.stop_token_id = min(
            stops,
            default=(
                0,
                tokenizer.special_tokens.get(end_of_text, min(tokenizer.stop_token_ids)),
            ),
        )
        self._prompt = lru_cache(_CACHED_PROMPTS)(self._make_prompt)

    def encode(self, conversation: Conversation) -> EncodedConversation:
        """Return the tokens of a conversation.

        Raises:
            DataError: the template changes an answer, or what was said before it.
            PromptError: the template refuses the conversation.
        """
        messages = conversation.messages
        token_ids: list[int] = []
        labels: list[int] = []
        for place, message in enumerate(messages):
            if message.role != ASSISTANT:
                continue
            text, prompt = self._prompt(messages[:place])
            if prompt == token_ids:
                raise DataError(f"message {place} follows an answer at once; join the two")
            if prompt[: len(token_ids)] != token_ids:
                raise DataError(
                    f"message {place} would be learned behind other tokens than it is generated"
                    " behind: the chat template changes earlier answers, or spaces around one of"
                    " them merge with its own; remove those, or make each answer an example of its"
                    " own"
                )
            labels += [IGNORED] * (len(prompt) - len(token_ids))
            if token_ids and not self._writes_stop:
                labels[len(token_ids)] = self.stop_token_id
            answer = self._answer(text, messages[: place + 1])
            labels += answer
            token_ids = prompt + answer
        if not self._writes_stop:
            token_ids.append(self.stop_token_id)
            labels.append(self.stop_token_id)
        return EncodedConversation(np.array(token_ids, np.int32), np.array(labels, np.int32))

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> RenderedPrompt:
        return self._processor.apply_chat_template(
            [_for_template(message) for message in messages], add_generation_prompt
        )

    def _make_prompt(self, messages: tuple[Message, ...]) -> Prompt:
        """Return what an answer follows, as text and as tokens."""
        text = self._render(messages, add_generation_prompt=True)
        images = sum(map(count_images, messages))
        token_ids: list[int] = self._processor.encode(text, images).tolist()
        placeholder = self._processor.tokenizer.image_token_ids.image
        if images and placeholder not in token_ids:
            # Images that the template has no place for go behind BOS.
            token_ids[1:1] = [placeholder] * images
        return text, token_ids

    def _answer(self, prompt: RenderedPrompt, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of the last message, its stop token included if there is one."""
        whole = self._render(messages, add_generation_prompt=False)
        start, end = len(prompt), len(whole) - len(self._tail)
        if end <= start or not (whole.startswith(prompt) and whole.endswith(self._tail)):
            raise DataError(
                f"message {len(messages) - 1}: the chat template does not write this answer behind"
                " the prompt that asks for it"
            )
        literals = {place - start for place in whole.literals if place >= start}
        return self._processor.tokenizer.encode(whole[start : end + self._num_learned], literals)


def _for_template(message: Message) -> dict[str, Any]:
    if isinstance(message.content, str):
        return {"role": message.role, "content": message.content}
    parts = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
        for part in message.content
    ]
    return {"role": message.role, "content": parts}
