"""Reads training data: a mixture of files, each with one example (a conversation) a line.

{"messages": [
    {"role": "user", "content": [{"type": "image", "path": "1.png"},
                                 {"type": "text", "text": "What color?"}]},
    {"role": "assistant", "content": "red"}
]}

Messages are those of `processing/messages.py`. A list `images` beside them names the images of
image parts that name none. Other keys, of examples and of messages, are ignored.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..config.json_file import MAX_BYTES, parse_json, quoted, read_json
from ..errors import DataError
from ..files import local_path, reason
from ..processing.messages import ImagePart, Message, collect_images, read_messages
from .example_images import image_address

ASSISTANT = "assistant"
KINDS = ("captions", "instructions", "text")
TEXT = "text"
TRAIN_NAME, VALIDATION_NAME = "train.jsonl", "valid.jsonl"
"""Files of a folder of training data, as mlx-lm names them."""
_IMAGE = ImagePart(None)
_KEYS = ("name", "path", "kind", "weight")


@dataclass(frozen=True)
class Source:
    """One file of examples."""

    name: str
    path: Path
    kind: str | None
    """`captions` or `instructions`: every example has an image; `text`: none has. None: the file
    is the only one, and may have both."""
    weight: float
    """Relative to the other sources with images, or to the others without."""


class Conversation(NamedTuple):
    """One example."""

    messages: tuple[Message, ...]
    """Up to the last answer. Image parts only mark places, so equal texts are equal messages."""
    images: tuple[str, ...]
    """Path or URL of every image, in order."""


def read_sources(path: str | Path, name: str = TRAIN_NAME) -> tuple[Source, ...]:
    """Return the files to train on.

    Args:
        path: a `.jsonl` file of examples, a folder with such files, or a mixture, whose paths
            start from its folder:
            `{"sources": [{"name": ..., "path": ..., "kind": ..., "weight": ...}, ...]}`.
        name: of the file in a folder.

    Raises:
        DataError: the file cannot be read, or is no mixture.
    """
    path = local_path(path, DataError)
    if path.is_dir():
        path = path / name
    if path.suffix == ".jsonl":
        return (Source(path.stem, path, None, 1.0),)
    if not path.exists():
        raise DataError(f"{path} cannot be read: No such file or directory")
    content = read_json(path, DataError)
    entries = content.get("sources") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(
            f'{path} is no mixture; expected {{"sources": [{{...}}, ...]}}, or examples in a file'
            " named .jsonl"
        )
    sources = tuple(
        _read_source(entry, path.parent, f"{path}: source {place}")
        for place, entry in enumerate(entries)
    )
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{path}: two sources are named {quoted(name)}; rename one")
    return sources


def _read_source(entry: Any, folder: Path, where: str) -> Source:
    if not isinstance(entry, dict):
        raise DataError(f"{where} must be an object with {', '.join(_KEYS)}")
    for key in entry:
        if key not in _KEYS:
            raise DataError(f"{where} has the key {quoted(key)}; expected {', '.join(_KEYS)}")
    for key in ("name", "path"):
        if not isinstance(entry.get(key), str) or not entry[key]:
            raise DataError(f"{where}: {key} must be a text")
    kind, weight = entry.get("kind"), entry.get("weight")
    if kind not in KINDS:
        raise DataError(f"{where}: kind is {quoted(kind)}; expected {', '.join(KINDS)}")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise DataError(f"{where}: weight is {quoted(weight)}; expected a number above 0")
    path = folder / local_path(entry["path"], DataError)
    return Source(entry["name"], path, kind, float(weight))


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield number, from 1, and contents of every line that is not empty.

    Raises:
        DataError: the file cannot be read, or a line of it has no end.
    """
    number = 0
    try:
        with path.open("rb") as file:
            while line := file.readline(MAX_BYTES + 1):
                number += 1
                if len(line) > MAX_BYTES:
                    raise DataError(f"has a line of more than {MAX_BYTES // 2**20} MB: {number}")
                if line.strip():
                    yield number, line
    except OSError as error:
        raise DataError(f"cannot be read: {reason(error)}") from error


def read_conversation(line: bytes, folder: Path) -> Conversation:
    """Read one example, a JSON object; relative paths of images start from `folder`.

    Raises:
        DataError: it cannot be trained on; says why.
        PromptError: a message is malformed, or images and their places differ.
    """
    try:
        example = parse_json(line)
    except ValueError as error:
        raise DataError(f"no JSON: {error}") from None
    if not isinstance(example, dict):
        raise DataError("no JSON object; expected one with messages")
    given = example.get("messages")
    if not isinstance(given, list) or not given:
        raise DataError("has no messages; expected a list of messages under that key")
    given = [_only_known_keys(message) for message in given]
    sources = collect_images(given, example.get("images"))
    messages = _up_to_last_answer(read_messages(given))
    without_sources = tuple(_without_source(message) for message in messages)
    images = sources[: sum(map(count_images, without_sources))]
    return Conversation(without_sources, tuple(image_address(source, folder) for source in images))


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
    content = tuple(part if isinstance(part, str) else _IMAGE for part in message.content)
    return Message(message.role, content)


def _up_to_last_answer(messages: list[Message]) -> list[Message]:
    """Check all answers, and leave out what follows the last one: nothing is learned from it."""
    end = 0
    for place, message in enumerate(messages):
        if message.role != ASSISTANT:
            continue
        if place == 0:
            raise DataError("message 0 is an answer; expected a question before it")
        if count_images(message):
            raise DataError(f"message {place} is an answer with an image; only text is learned")
        if not "".join(part for part in message.content if isinstance(part, str)).strip():
            raise DataError(f"message {place} is an empty answer")
        end = place + 1
    if not end:
        raise DataError(f"has no answer; expected a message with role {ASSISTANT}")
    return messages[:end]
