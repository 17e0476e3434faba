"""Messages to one prompt text, by the checkpoint's chat template."""

import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import jinja2

from ..config.checkpoint_config import PromptConfig
from ..config.json_file import read_json
from ..errors import CheckpointError, PromptError
from .messages import Message, question, read_messages
from .template_sandbox import TemplateSandbox
from .tokenizer import IMAGE_PLACEHOLDER, Tokenizer

logger = logging.getLogger(__name__)

_SANDBOX = TemplateSandbox()

DEFAULT_TEMPLATE = """\
{%- for message in messages -%}
    {{- ' ' if always_start_with_space or not loop.first -}}
    {{- message.role | capitalize }}: {% if message.content is string -%}
        {{- message.content -}}
    {%- else -%}
        {%- for part in message.content -%}
            {{- image_prompt_token if part.type == 'image' else part.text -}}
        {%- endfor -%}
    {%- endif -%}
{%- endfor -%}
{{- ' Assistant:' if add_generation_prompt -}}
"""
"""What the released template does, for a checkpoint that lost it."""


class RenderedPrompt(str):
    """A prompt made by a chat template: equal to its text, and aware of what users wrote of it.

    Slicing, joining and formatting give a plain `str`, which is not.
    """

    literals: frozenset[int]
    """Positions where a user's text begins to spell a special token, which must not become one;
    for `Tokenizer.encode`."""

    def __new__(cls, text: str, literals: Iterable[int] = ()) -> "RenderedPrompt":
        """Make a prompt of a text, with the `literals` in it."""
        prompt = super().__new__(cls, text)
        prompt.literals = frozenset(literals)
        return prompt


class ChatTemplate:
    """A jinja template, rendered as the transformers library renders chat templates.

    The template sees messages with text and image parts (`{"type": "image"}`), the variables
    `add_generation_prompt`, `always_start_with_space`, `image_prompt_token`, and the spelling
    of the tokenizer's named tokens (`bos_token`, ...). It runs in jinja's sandbox.
    """

    def __init__(
        self,
        source: str,
        config: PromptConfig,
        special_tokens: Collection[str],
        named_tokens: Mapping[str, str],
    ) -> None:
        self.source = source
        self._compiled: jinja2.Template | None = None
        self._variables = {
            **named_tokens,
            "always_start_with_space": config.always_start_with_space,
            "image_prompt_token": IMAGE_PLACEHOLDER,
        }
        self._first_character = _first_character_pattern(special_tokens)
        self._prefixes = {
            token[:length] for token in special_tokens for length in range(1, len(token))
        }
        self._first_characters = sorted({token[0] for token in special_tokens})
        self._longest = max(map(len, special_tokens), default=0)

    @classmethod
    def load(cls, folder: Path, config: PromptConfig, tokenizer: Tokenizer) -> "ChatTemplate":
        """Read the template of a checkpoint folder.

        It is stored in chat_template.jinja, or under `chat_template` in chat_template.json,
        processor_config.json or tokenizer_config.json, the newest convention first. Without
        any, the released template is assumed, and a notice logged.

        Raises:
            CheckpointError: a file cannot be read or holds no template under that name.
        """
        source = _read_source(folder)
        if source is None:
            logger.warning("%s has no chat template; the released one is used", folder)
            source = DEFAULT_TEMPLATE
        return cls(source, config, tokenizer.special_tokens, tokenizer.named_tokens)

    def render(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True
    ) -> RenderedPrompt:
        """Return the prompt of a conversation, with a placeholder for every image.

        Args:
            messages: the conversation, see `messages.py`.
            add_generation_prompt: whether to end with what an answer follows.

        Raises:
            PromptError: a message is malformed, or the template refuses the conversation.
        """
        conversation = read_messages(messages)
        # Every character at which a user's text begins to spell a special token is masked while
        # the template runs: by one private-use character for each, which nobody used. Lengths stay
        # as they are, and the masks show afterwards where the user's text has come to.
        masks = self._choose_masks(conversation)
        try:
            if self._compiled is None:
                self._compiled = _SANDBOX.from_string(self.source)
            text = _SANDBOX.render(
                self._compiled,
                messages=[self._for_template(message, masks) for message in conversation],
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **self._variables,
            )
        except Exception as error:  # whatever the template does wrong, of any kind
            summary = str(error).strip().splitlines() or [type(error).__name__]
            raise PromptError(f"the chat template fails: {summary[0]}") from error
        unmasked = {ord(mask): character for character, mask in masks.items()}
        literals = [index for index, character in enumerate(text) if ord(character) in unmasked]
        return RenderedPrompt(text.translate(unmasked), literals)

    @cached_property
    def _frame(self) -> tuple[str, str] | None:
        """What the template puts around the text of a single question; None: nothing fixed."""
        probe = "question"
        try:
            before, found, after = self.render(question(probe, [])).partition(probe)
        except PromptError:
            return None
        before, after = before.strip(), after.strip()
        return (before, after) if found and before and after else None

    def has_rendered(self, text: str) -> bool:
        """Whether a plain text looks like a question that this template has rendered already."""
        if self._frame is None:
            return False
        text = text.strip()
        before, after = self._frame
        return text.startswith(before) and text.endswith(after)

    def _choose_masks(self, conversation: Iterable[Message]) -> dict[str, str]:
        """Private-use characters, in no text of the conversation, for the first characters."""
        used = set(self.source).union(
            *(text for message in conversation for text in _texts(message))
        )
        free = (
            character
            for character in map(chr, chain(range(0xE000, 0xF900), range(0xF0000, 0xFFFFE)))
            if character not in used
        )
        masks = dict(zip(self._first_characters, free, strict=False))
        if len(masks) < len(self._first_characters):
            raise PromptError("the messages use up all private-use characters of Unicode")
        return masks

    def _for_template(self, message: Message, masks: Mapping[str, str]) -> dict[str, Any]:
        def masked(text: str) -> str:
            result = self._first_character.sub(lambda found: masks[found.group()], text)
            # A spelling may also continue in the next part, if there is no image in between.
            for index in range(max(0, len(text) - self._longest), len(text)):
                if text[index:] in self._prefixes:
                    result = result[:index] + masks[text[index]] + result[index + 1 :]
            return result

        if isinstance(message.content, str):
            return {"role": message.role, "content": masked(message.content)}
        parts = [
            {"type": "text", "text": masked(part)} if isinstance(part, str) else {"type": "image"}
            for part in message.content
        ]
        return {"role": message.role, "content": parts}


def _texts(message: Message) -> Iterable[str]:
    if isinstance(message.content, str):
        return [message.content]
    return [part for part in message.content if isinstance(part, str)]


def _first_character_pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """A pattern for the first character of each token spelled in a text, overlapping or not."""
    rests: dict[str, list[str]] = {}
    for token in tokens:
        rests.setdefault(token[0], []).append(re.escape(token[1:]))
    return re.compile(
        "|".join(f"{re.escape(first)}(?={'|'.join(rest)})" for first, rest in rests.items())
        or "(?!)"
    )


def _read_source(folder: Path) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}") from None
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        file = folder / name
        contents = read_json(file) if file.is_file() else None
        template = contents.get("chat_template") if isinstance(contents, dict) else None
        if isinstance(template, list):  # of named templates
            named = {entry.get("name"): entry for entry in template if isinstance(entry, dict)}
            template = named.get("default", {}).get("template", template)
        if isinstance(template, str):
            return template
        if template is not None:
            raise CheckpointError(f"{file}: chat_template is neither a text nor has a default")
    return None
