"""Requests of a batch that come from a file of JSON Lines.

{"prompt": "What is this?", "images": ["photo.jpg"], "id": "a1", "max_tokens": 50}
{"messages": [{"role": "user", "content": "Hello"}]}
"""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ..config.json_file import MAX_BYTES, parse_json, quoted
from ..errors import RequestError
from ..files import reason
from ..generation.options import JSON_OPTIONS, GenerationOptions
from ..generation.requests import BatchRequest
from ..processing.sources import is_url, locate

STANDARD_STREAM = Path("-")
"""What names standard input or output."""
_KEYS = ("id", "prompt", "messages", "image", "images", "system")


@dataclasses.dataclass(frozen=True)
class FileRequest:
    """One request as it was given, not checked yet."""

    number: int
    """Its line in the file, or its place among the images; from 1."""
    text: str
    """JSON, or what should be."""
    key: str | int
    """What tells it from others: its id, or its number."""
    digest: str
    """Of the request and of everything else that its response depends on."""

    @classmethod
    def of(cls, number: int, text: str, config: str) -> "FileRequest":
        """Return the request of one line of JSON, which may be damaged.

        Args:
            number: of the line.
            text: of the line.
            config: what all responses depend on, as a text.
        """
        try:
            content = _parse(number, text)
            canonical, given = json.dumps(content, sort_keys=True), content.get("id")
        except RequestError:
            canonical, given = text, None
        key = given if isinstance(given, str) else number if given is None else str(given)
        digest = hashlib.sha256(f"{config}\n{canonical}".encode()).hexdigest()[:16]
        return cls(number, text, key, digest)

    def request(self, folder: Path) -> BatchRequest:
        """Return what `batch_generate` takes.

        Args:
            folder: that relative paths of images start from.

        Raises:
            RequestError: a key is unknown, or a value is of the wrong type or out of range.
        """
        parsed = _parse(self.number, self.text)
        content = {name: value for name, value in parsed.items() if value is not None}
        options = {name: value for name, value in content.items() if name not in _KEYS}
        for name in options:
            if name not in JSON_OPTIONS:
                raise RequestError(
                    f"{quoted(name)} is no key of a request; expected {', '.join(_KEYS)} or an"
                    " option"
                )
        GenerationOptions.of(None, options)
        if ("prompt" in content) == ("messages" in content):
            raise RequestError("a request needs either prompt or messages")
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
            options=options,
        )


def read_requests(path: Path, config: str) -> list[FileRequest]:
    """Return the requests of a file; empty lines and byte order marks are passed over.

    Args:
        path: of the file; `-` is standard input.
        config: as for `FileRequest.of`.

    Raises:
        RequestError: it cannot be read, has a line that is too long, or two requests have the
            same id.
    """
    try:
        if path == STANDARD_STREAM:
            requests = list(_read_lines(sys.stdin.buffer, "standard input", config))
        else:
            with path.open("rb") as file:
                requests = list(_read_lines(file, str(path), config))
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} cannot be read: {reason(error)}") from error
    numbers: dict[str | int, int] = {}
    for request in requests:
        number = numbers.setdefault(request.key, request.number)
        if number != request.number:
            raise RequestError(
                f"lines {number} and {request.number} of {path} have the same id"
                f" {quoted(request.key)}"
            )
    return requests


def _read_lines(file: IO[bytes], name: str, config: str) -> Iterator[FileRequest]:
    number = 0
    # Devices and pipes may never end.
    while line := file.readline(MAX_BYTES + 1):
        number += 1
        if len(line) > MAX_BYTES:
            raise RequestError(f"line {number} of {name} is longer than {MAX_BYTES // 2**20} MB")
        if text := line.decode("utf-8-sig", "replace").strip():
            yield FileRequest.of(number, text, config)


def _parse(number: int, text: str) -> dict[str, Any]:
    try:
        content = parse_json(text)
    except ValueError as error:
        raise RequestError(f"line {number} is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise RequestError(f"line {number} is no JSON object")
    return content


def _with_paths(messages: Any, folder: Path) -> Any:
    """Return messages whose images' relative paths start from the folder."""
    if not isinstance(messages, list):
        return messages  # the chat template says what is wrong with them

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
    """Return a path from the folder, or an address as it is."""
    return source if is_url(source) else locate(source, folder, RequestError)
