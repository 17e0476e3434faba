"""Reads a file of questions: JSON Lines, one question a row.

{"prompt": "What is this?", "images": ["photo.jpg"], "id": "a1", "max_tokens": 50}
{"messages": [{"role": "user", "content": "Hello"}]}
"""

import dataclasses
import hashlib
import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..config.json_file import parse_json
from ..errors import RequestError
from ..generation.options import GenerationOptions
from ..generation.requests import BatchRequest
from ..processing.image_decoding import reason
from ..processing.image_io import is_address, source_name

_OPTIONS = {field.name: field.type for field in dataclasses.fields(GenerationOptions)}
_KEYS = ("id", "prompt", "messages", "image", "images", "system")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the file, not understood yet."""

    number: int
    """From 1."""
    text: str

    def content(self) -> dict[str, Any]:
        """Return the line's object.

        Raises:
            RequestError: it is no JSON object.
        """
        try:
            content = parse_json(self.text)
        except ValueError as error:
            raise RequestError(f"row {self.number} is no JSON: {error}") from None
        if not isinstance(content, dict):
            raise RequestError(f"row {self.number} is no JSON object")
        return content

    @property
    def key(self) -> str | int:
        """What tells the row from others: its id, or its number."""
        try:
            given = self.content().get("id")
        except RequestError:
            return self.number
        return given if isinstance(given, str) else self.number if given is None else str(given)

    def digest(self, config: str) -> str:
        """Return a digest of the question and of the config it is asked with."""
        try:
            question = json.dumps(self.content(), sort_keys=True)
        except RequestError:
            question = self.text
        return hashlib.sha256(f"{config}\n{question}".encode()).hexdigest()[:16]

    def request(self, folder: Path) -> BatchRequest:
        """Return what is asked.

        Args:
            folder: that relative paths of images start from.

        Raises:
            RequestError: a key is unknown or has a value of the wrong type.
        """
        content = {name: value for name, value in self.content().items() if value is not None}
        for name, value in content.items():
            if name in _OPTIONS:
                _check_option(name, value)
            elif name not in _KEYS:
                raise RequestError(
                    f"{name!r} is no key of a row; expected {', '.join(_KEYS)} or an option"
                )
        if ("prompt" in content) == ("messages" in content):
            raise RequestError("a row needs either prompt or messages")
        if "prompt" in content and not isinstance(content["prompt"], str):
            raise RequestError("prompt must be a text; a conversation goes into messages")
        if "system" in content and not isinstance(content["system"], str):
            raise RequestError("system must be a text")
        images = content.get("images", [])
        images = images if isinstance(images, list) else [images]
        images = [content["image"], *images] if "image" in content else images
        if not all(isinstance(image, str) for image in images):
            raise RequestError("images must be a list of paths or addresses")
        prompt = content.get("prompt")
        if prompt is None:
            prompt = _with_paths(content["messages"], folder)
        return BatchRequest(
            prompt=prompt,
            images=[_locate(image, folder) for image in images],
            system=content.get("system"),
            options={name: content[name] for name in content if name in _OPTIONS},
        )


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file; empty lines and marks of the byte order are passed over.

    Raises:
        RequestError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                text = line.decode("utf-8-sig", "replace").strip()
                if text:
                    yield Row(number, text)
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror or error}") from error


def _check_option(name: str, value: Any) -> None:
    """Refuse a value that is not of an option's type, which JSON can easily have."""
    annotation: Any = _OPTIONS[name]
    choices = [one for one in typing.get_args(annotation) if one is not type(None)]
    if typing.get_origin(annotation) is tuple:
        choices = [annotation]
    for expected in choices or [annotation]:
        origin = typing.get_origin(expected)
        if origin is not None:  # several texts or numbers; a single text will do, too
            of = typing.get_args(expected)[0]
            values = value if isinstance(value, list) else [value]
        else:
            of, values = expected, [value]
        accepted = (int, float) if of is float else (of,)
        if all(isinstance(one, accepted) and not isinstance(one, bool) for one in values):
            return
    raise RequestError(f"{name} is {value!r}; expected {_type_name(annotation)}")


def _type_name(annotation: Any) -> str:
    names = {int: "a whole number", float: "a number"}
    for kind, name in names.items():
        if annotation is kind or kind in typing.get_args(annotation):
            return name
    return "a list of texts" if typing.get_origin(annotation) is tuple else "a list of token ids"


def _with_paths(messages: Any, folder: Path) -> Any:
    """Return messages whose images' relative paths start from the folder."""
    if not isinstance(messages, list):
        return messages  # what is wrong with them is said where they are read

    def located(part: Any) -> Any:
        if not isinstance(part, dict) or part.get("type") not in ("image", "image_url"):
            return part
        return {
            key: value if key == "type" else _locate_value(value, folder)
            for key, value in part.items()
        }

    return [
        {**message, "content": [located(part) for part in message["content"]]}
        if isinstance(message, dict) and isinstance(message.get("content"), list)
        else message
        for message in messages
    ]


def _locate_value(value: Any, folder: Path) -> Any:
    """Locate what a part says of its image: the source, or an object with it under `url`."""
    if isinstance(value, dict) and isinstance(value.get("url"), str):
        return {**value, "url": _locate(value["url"], folder)}
    return _locate(value, folder) if isinstance(value, str) else value


def _locate(source: str, folder: Path) -> str:
    """Return a path from the folder, or an address as it is.

    Raises:
        RequestError: it is in the home folder of a user who does not exist.
    """
    if is_address(source):
        return source
    try:
        return str(folder / Path(source).expanduser())
    except RuntimeError as error:
        raise RequestError(f"{source_name(source)} cannot be opened: {reason(error)}") from None
