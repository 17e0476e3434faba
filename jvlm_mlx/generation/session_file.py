"""A conversation as one safetensors file: text as JSON metadata, features and KV cache as tensors.

A file may come from a stranger: nothing of it is used before `session_schema` has checked it.
"""

import dataclasses
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
from safetensors import SafetensorError, safe_open

from ..config.json_file import parse_json, quoted
from ..errors import JvlmError, SessionError
from ..files import atomic_file, reason
from ..model import Model
from ..processing.processor import Processor
from . import device
from .caches import LayerState
from .image_encoding import EncodedImage
from .prompt import PromptKey
from .session_schema import DamagedError, read_conversation

FORMAT = "jvlm-mlx session"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class SavedSession:
    """What a file holds."""

    fingerprint: str
    """Of the model, as `model_digest` gives it."""
    description: str
    """Of the model, for people."""
    system: str | None
    options: dict[str, Any]
    """That were given to the session."""
    messages: list[dict[str, Any]]
    """Images as `EncodedImage`."""
    key: PromptKey | None
    """What `layers` belong to: a prefix of the conversation, perhaps all of it."""
    layers: list[LayerState]


def write_session(path: Path, session: SavedSession) -> None:
    """Write a conversation.

    Raises:
        SessionError: it cannot be written.
    """
    images: list[EncodedImage] = []
    messages = [_number_images(message, images) for message in session.messages]
    try:
        content = json.dumps(
            {
                "format": FORMAT,
                "version": VERSION,
                "fingerprint": session.fingerprint,
                "description": session.description,
                "system": session.system,
                "options": {
                    name: sorted(value) if isinstance(value, set | frozenset) else value
                    for name, value in session.options.items()
                },
                "messages": messages,
                "images": [_describe_image(image) for image in images],
                "key": None if session.key is None else dataclasses.asdict(session.key),
                "num_layers": len(session.layers),
            }
        )
    except (TypeError, ValueError) as error:
        raise SessionError(f"{path} cannot be written: {reason(error)}") from error
    # MLX appends the suffix to other names.
    with atomic_file(path, SessionError, suffix=".safetensors") as temporary:
        device.run(partial(_save_tensors, str(temporary), images, session, content))


def _save_tensors(
    path: str, images: list[EncodedImage], session: SavedSession, content: str
) -> None:
    tensors = {f"images.{index}": image.features for index, image in enumerate(images)}
    if session.key is not None:
        length = session.key.num_tokens
        for index, layer in enumerate(session.layers):
            tensors[f"layers.{index}.keys"] = layer.keys[..., :length, :]
            tensors[f"layers.{index}.values"] = layer.values[..., :length, :]
    # safetensors refuses a file without any tensor.
    mx.save_safetensors(path, tensors or {"empty": mx.zeros(1)}, {"session": content})


def read_session(
    path: Path, model: Model, processor: Processor, fingerprint: str, description: str
) -> SavedSession:
    """Read a conversation; everything is evaluated, and the file is not needed any more.

    Args:
        path: of the file.
        model: in use.
        processor: in use.
        fingerprint: of the model, as `model_digest` gives it.
        description: of the model.

    Raises:
        SessionError: the file is damaged, of another model or processor, or of a newer version.
    """
    content = _read_content(path)
    if content.get("fingerprint") != fingerprint:
        saved = content.get("description")
        other = "the same size, but other weights" if saved == description else quoted(saved)
        raise SessionError(
            f"{path} was saved with another model ({other}; in use: {description}):"
            " load it with the model it was saved with"
        )
    try:
        return device.run(partial(_read, path, content, model, processor))
    # JvlmError: an option or a setting that is out of range.
    except (DamagedError, JvlmError, RuntimeError, TypeError, OverflowError) as error:
        raise SessionError(f"{path} is damaged: {reason(error)}") from error


def _read_content(path: Path) -> dict[str, Any]:
    """Read the metadata. Opening the file also tells whether it has all its bytes."""
    try:
        if path.exists() and not path.is_file():
            raise SessionError(f"{path} is no regular file, so no saved conversation")
        with path.open("rb"):  # says more than the library, if it cannot be opened
            pass
        with safe_open(path, framework="numpy") as opened:
            metadata = opened.metadata() or {}
    except FileNotFoundError:
        raise SessionError(f"{path} does not exist") from None
    except OSError as error:
        raise SessionError(f"{path} cannot be read: {reason(error)}") from error
    except (SafetensorError, ValueError) as error:
        raise SessionError(
            f"{path} is truncated or no saved conversation ({reason(error)})"
        ) from error
    try:
        content = parse_json(metadata["session"])
    except (KeyError, ValueError):
        content = None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise SessionError(f"{path} is no saved conversation")
    if content.get("version") != VERSION:
        raise SessionError(
            f"{path} has version {quoted(content.get('version'))} of the format, and this program"
            f" reads version {VERSION}: update jvlm-mlx"
        )
    return content


def _read(path: Path, content: dict[str, Any], model: Model, processor: Processor) -> SavedSession:
    tensors = mx.load(str(path), format="safetensors")  # nothing is read before it is evaluated
    assert isinstance(tensors, dict)
    messages, key, layers = read_conversation(content, tensors, model, processor)
    return SavedSession(
        fingerprint=content["fingerprint"],
        description=content["description"],
        system=content["system"],
        options=content["options"],
        messages=messages,
        key=key,
        layers=layers,
    )


def _number_images(message: dict[str, Any], images: list[EncodedImage]) -> dict[str, Any]:
    """Return a message that names its images by number, and add them to `images`."""
    if isinstance(message["content"], str):
        return message
    content = []
    for part in message["content"]:
        if part["type"] == "image":
            content.append({"type": "image", "image": len(images)})
            images.append(part["image"])
        else:
            content.append(part)
    return {**message, "content": content}


def _describe_image(image: EncodedImage) -> dict[str, Any]:
    return {
        "name": image.name,
        "digest": image.digest,
        "settings": dataclasses.asdict(image.config),
        "token_ids": dataclasses.asdict(image.token_ids),
        "layout": dataclasses.asdict(image.layout),
    }
