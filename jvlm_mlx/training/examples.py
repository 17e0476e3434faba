"""Reads rows: JSON Lines, one conversation a line.

{"messages": [
    {"role": "user", "content": [{"type": "image", "path": "1.png"},
                                 {"type": "text", "text": "What color?"}]},
    {"role": "assistant", "content": "red"}
]}

Messages are those of `text/messages.py`. A list `images` beside them names the images of image
parts that name none. All other keys, of rows and of messages, are left alone.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..config.json_file import parse_json
from ..errors import DataError
from ..processing.messages import ImagePart, Message, collect_images, read_messages
from .image_files import locate

ANSWERING = "assistant"
BARE = ImagePart(None)
"""The place of an image."""


class Conversation(NamedTuple):
    """A row that has been read."""

    messages: tuple[Message, ...]
    """Up to the last answer. Image parts only mark places, so equal words are equal messages."""
    images: tuple[str, ...]
    """Path or address of every image, in order."""


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield number, from 1, and contents of every line that is not empty.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}") from error


def read_conversation(line: bytes, folder: Path) -> Conversation:
    """Read a line.

    Args:
        line: a JSON object.
        folder: that relative paths of images start from.

    Raises:
        DataError: the row cannot be trained on; says why.
        PromptError: a message is malformed, or images and their places differ.
    """
    try:
        row = parse_json(line)
    except ValueError as error:
        raise DataError(f"no JSON: {error}") from None
    if not isinstance(row, dict):
        raise DataError("no JSON object; expected one with messages")
    given = row.get("messages")
    if not isinstance(given, list) or not given:
        raise DataError("has no messages; expected a list of messages under that key")
    given = [_only_known_keys(message) for message in given]
    sources = collect_images(given, row.get("images"))
    messages = _up_to_last_answer(read_messages(given))
    bare = tuple(_without_source(message) for message in messages)
    images = sources[: sum(map(count_images, bare))]
    return Conversation(bare, tuple(locate(source, folder) for source in images))


def count_images(message: Message) -> int:
    """Return how many images a message has."""
    if isinstance(message.content, str):
        return 0
    return sum(not isinstance(part, str) for part in message.content)


def _only_known_keys(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    return {key: message[key] for key in ("role", "content") if key in message}


def _without_source(message: Message) -> Message:
    if isinstance(message.content, str):
        return message
    content = tuple(part if isinstance(part, str) else BARE for part in message.content)
    return Message(message.role, content)


def _up_to_last_answer(messages: list[Message]) -> list[Message]:
    """Check all answers, and leave out what follows the last one: nothing is learned of it."""
    end = 0
    for place, message in enumerate(messages):
        if message.role != ANSWERING:
            continue
        if place == 0:
            raise DataError("message 0 is an answer; expected a question before it")
        if count_images(message):
            raise DataError(f"message {place} is an answer with an image; only words are learned")
        if not "".join(part for part in message.content if isinstance(part, str)).strip():
            raise DataError(f"message {place} is an empty answer")
        end = place + 1
    if not end:
        raise DataError(f"has no answer; expected a message with role {ANSWERING}")
    return messages[:end]
