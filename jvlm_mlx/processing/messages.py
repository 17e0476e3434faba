"""Conversations: lists of messages, checked and brought to one form.

A message is `{"role": ..., "content": ...}`. The content is a text or a list of parts:

    {"type": "text", "text": "What is this?"}
    {"type": "image", "image": image}         (or under "url" or "path", or left out)
    {"type": "image_url", "image_url": {"url": "https://..."}}      (or the address itself)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import PromptError

ROLES = ("system", "user", "assistant")
_SOURCE_KEYS = ("image", "url", "path")


class ImagePart(NamedTuple):
    """An image in a message; `source` is None where the message only marks its position."""

    source: Any


class Message(NamedTuple):
    """One checked message: a text, or a tuple of texts and images."""

    role: str
    content: str | tuple[str | ImagePart, ...]


def read_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Check a conversation.

    Raises:
        PromptError: a message is malformed; says which one and how.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise PromptError(f"messages must be a list of messages, found {_kind(messages)}")
    if not messages:
        raise PromptError("there are no messages; give at least one")
    return [_read_message(message, f"message {index}") for index, message in enumerate(messages)]


def collect_images(
    messages: Sequence[Mapping[str, Any]], images: Sequence[Any] | None = None
) -> list[Any]:
    """Return the sources of a conversation's images, in order.

    Args:
        messages: the conversation.
        images: sources for the image parts that have none of their own, in order.

    Raises:
        PromptError: a message is malformed, or there are more or fewer `images` than image
            parts without a source.
    """
    sources = [
        part.source
        for message in read_messages(messages)
        if not isinstance(message.content, str)
        for part in message.content
        if isinstance(part, ImagePart)
    ]
    if images is not None and (isinstance(images, str | bytes) or not isinstance(images, Sequence)):
        raise PromptError(f"images must be a list of images, found {_kind(images)}")
    given = list(images or ())
    bare = sum(source is None for source in sources)
    if bare != len(given):
        raise PromptError(
            f"the messages have {bare} image parts without a source of their own,"
            f" but {len(given)} images were given for them"
        )
    fill = iter(given)
    return [next(fill) if source is None else source for source in sources]


def expand_images(
    messages: Sequence[Mapping[str, Any]], expand: Callable[[Any], list[Any]]
) -> list[Mapping[str, Any]]:
    """Return a conversation in which every image part is one image.

    `expand` returns the images that a source names, such as the pages of a PDF.

    Raises:
        PromptError: a message is malformed.
    """
    expanded: list[Mapping[str, Any]] = []
    for message, checked in zip(messages, read_messages(messages), strict=True):
        if isinstance(checked.content, str):
            expanded.append(message)
            continue
        parts: list[dict[str, Any]] = []
        for part in checked.content:
            if isinstance(part, str):
                parts.append({"type": "text", "text": part})
            elif part.source is None:
                parts.append({"type": "image"})
            else:
                parts += [{"type": "image", "image": image} for image in expand(part.source)]
        expanded.append({**message, "content": parts})
    return expanded


def question(text: str, images: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the messages of a single question, in front of which all images go."""
    parts: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def _read_message(message: Any, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise PromptError(
            f"{where} must be an object with role and content, found {_kind(message)}"
        )
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise PromptError(f"{where} has role {role!r}; expected {', '.join(ROLES)}")
    # Clients send back what they received, empty fields included.
    extra = [key for key, value in message.items() if key not in ("role", "content") and value]
    if extra:
        raise PromptError(f"{where} has {extra[0]!r}, which is not supported; remove it")
    if isinstance(content, str):
        return Message(role, content)
    if isinstance(content, Mapping) or not isinstance(content, Sequence):
        raise PromptError(f"{where} has content of {_kind(content)}; expected a text or parts")
    return Message(
        role,
        tuple(_read_part(part, f"{where}, part {index},") for index, part in enumerate(content)),
    )


def _read_part(part: Any, where: str) -> str | ImagePart:
    if not isinstance(part, Mapping):
        raise PromptError(f"{where} must be an object with a type, found {_kind(part)}")
    kind = part.get("type")
    if kind == "text":
        text = part.get("text")
        if not isinstance(text, str):
            raise PromptError(f"{where} has a text of {_kind(text)}; expected a text")
        return text
    if kind == "image":
        sources = [part[key] for key in _SOURCE_KEYS if part.get(key) is not None]
        if len(sources) > 1:
            raise PromptError(f"{where} has more than one of {', '.join(_SOURCE_KEYS)}; keep one")
        return ImagePart(sources[0] if sources else None)
    if kind == "image_url":
        address = part.get("image_url")
        if isinstance(address, Mapping):
            address = address.get("url")
        if not isinstance(address, str):
            raise PromptError(f"{where} has no address; expected image_url: {{url: ...}}")
        return ImagePart(address)
    raise PromptError(f"{where} has type {kind!r}; expected text, image or image_url")


def _kind(value: Any) -> str:
    """What a value is, for messages; never the value itself, which may be a whole image."""
    return "None" if value is None else f"type {type(value).__name__}"
