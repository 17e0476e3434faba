"""A conversation as one safetensors file: words in its metadata, features and states as tensors."""

import dataclasses
import json
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from safetensors import SafetensorError, safe_open

from ..config.image_config import ImageConfig
from ..config.json_file import parse_json
from ..errors import JvlmError, SessionError
from ..processing.image_tokens import ImageTokenIds
from ..processing.tiling import ImageLayout
from .caches import LayerState
from .encoded_image import EncodedImage
from .memory import device_turns
from .prompt_key import PromptKey

FORMAT = "jvlm-mlx session"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class SavedSession:
    """What a file holds."""

    fingerprint: str
    """Of the model."""
    description: str
    """Of the model, for people."""
    system: str | None
    options: dict[str, Any]
    """That were given to the session."""
    messages: list[dict[str, Any]]
    """Images as `EncodedImage`."""
    key: PromptKey | None
    """What the states are of: a beginning of the conversation, perhaps all of it."""
    layers: list[LayerState]


def write_session(path: Path, session: SavedSession) -> None:
    """Write a conversation: to a file beside it first, which then takes its name.

    Raises:
        SessionError: it cannot be written.
    """
    images: list[EncodedImage] = []
    messages = [_without_images(message, images) for message in session.messages]
    tensors = {f"images.{place}": one.features for place, one in enumerate(images)}
    if session.key is not None:
        length = session.key.num_tokens
        for place, layer in enumerate(session.layers):
            tensors[f"layers.{place}.keys"] = layer.keys[..., :length, :]
            tensors[f"layers.{place}.values"] = layer.values[..., :length, :]
    content = {
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
    # The library refuses a file without any tensor.
    tensors = tensors or {"empty": mx.zeros(1)}
    temporary: str | None = None
    try:
        # A pipe or a device would be replaced by a file.
        if path.exists() and not path.is_file():
            raise SessionError(f"{path} is no regular file; give another name")
        handle, temporary = tempfile.mkstemp(".safetensors", f".{path.name}.", path.parent)
        os.close(handle)
        with device_turns:
            mx.save_safetensors(temporary, tensors, {"session": json.dumps(content)})
        with Path(temporary).open("rb+") as written:
            os.fsync(written.fileno())
        Path(temporary).replace(path)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise SessionError(f"{path} cannot be written: {error}") from error
    finally:
        if temporary is not None:
            with suppress(OSError):  # it has its name already
                Path(temporary).unlink()


def read_session(path: Path, fingerprint: str, description: str) -> SavedSession:
    """Read a conversation; everything is evaluated, and the file is not needed any more.

    Args:
        path: of the file.
        fingerprint: of the model in use.
        description: of the model in use.

    Raises:
        SessionError: the file is damaged, of another model, or of a newer version.
    """
    content = _read_content(path)
    if content["fingerprint"] != fingerprint:
        saved = content.get("description")
        said = "the same size, but other weights" if saved == description else saved
        raise SessionError(
            f"{path} was saved with another model ({said}; in use: {description}):"
            " load it with the model it was saved with"
        )
    try:
        tensors = mx.load(str(path), format="safetensors")
        assert isinstance(tensors, dict)
        with device_turns:
            mx.eval(tensors)
        images = [
            _read_image(described, fingerprint, tensors[f"images.{place}"])
            for place, described in enumerate(content["images"])
        ]
        key = content["key"]
        return SavedSession(
            fingerprint=fingerprint,
            description=description,
            system=content["system"],
            options=content["options"],
            messages=[_with_images(message, images) for message in content["messages"]],
            key=None if key is None else PromptKey(tuple(key["elements"]), tuple(key["lengths"])),
            layers=[
                LayerState(tensors[f"layers.{place}.keys"], tensors[f"layers.{place}.values"])
                for place in range(content["num_layers"])
            ],
        )
    except (KeyError, TypeError, AttributeError, RuntimeError, JvlmError) as error:
        raise SessionError(f"{path} is damaged ({type(error).__name__}: {error})") from error


def _read_content(path: Path) -> dict[str, Any]:
    """Read the metadata. Opening the file also tells whether it has all its bytes."""
    try:
        with safe_open(path, framework="numpy") as opened:
            metadata = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        if isinstance(error, FileNotFoundError) or not path.exists():
            raise SessionError(f"{path} does not exist") from None
        raise SessionError(f"{path} is truncated or no saved conversation ({error})") from error
    try:
        content = parse_json(metadata["session"])
    except (KeyError, ValueError):
        content = None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise SessionError(f"{path} is no saved conversation")
    if content.get("version") != VERSION:
        raise SessionError(
            f"{path} has version {content.get('version')} of the format, and this program knows"
            f" version {VERSION}: update jvlm-mlx"
        )
    return content


def _without_images(message: dict[str, Any], images: list[EncodedImage]) -> dict[str, Any]:
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


def _with_images(message: dict[str, Any], images: list[EncodedImage]) -> dict[str, Any]:
    if isinstance(message["content"], str):
        return message
    content = [
        {"type": "image", "image": images[part["image"]]} if part["type"] == "image" else part
        for part in message["content"]
    ]
    return {**message, "content": content}


def _describe_image(image: EncodedImage) -> dict[str, Any]:
    return {
        "name": image.name,
        "digest": image.digest,
        "settings": dataclasses.asdict(image.config),
        "token_ids": dataclasses.asdict(image.token_ids),
        "layout": dataclasses.asdict(image.layout),
    }


def _read_image(described: dict[str, Any], fingerprint: str, features: mx.array) -> EncodedImage:
    return EncodedImage(
        name=described["name"],
        digest=described["digest"],
        model=fingerprint,
        config=ImageConfig(**_tuples(described["settings"])),
        token_ids=ImageTokenIds(**described["token_ids"]),
        layout=ImageLayout(**_tuples(described["layout"])),
        features=features,
    )


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON has lists only; config have tuples only."""
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
