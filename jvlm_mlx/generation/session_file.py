"""A conversation as one safetensors file: text as JSON metadata, features and KV cache as tensors.

A file may come from a stranger. Every field and every array is compared with what the model and
its processor expect before it is used, and a message names saved images only, never a path or an
address.
"""

import dataclasses
import json
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any

import mlx.core as mx
from safetensors import SafetensorError, safe_open

from ..config.image_config import ImageOptions
from ..config.json_file import parse_json, quoted
from ..errors import JvlmError, SessionError
from ..files import atomic_file, reason
from ..model import Model
from ..processing.processor import Processor
from ..processing.tiling import tile_layout
from . import device
from .caches import LayerState
from .encoded_image import EncodedImage
from .model_identity import model_key
from .options import GenerationOptions
from .prompt_key import PromptKey

FORMAT = "jvlm-mlx session"
VERSION = 1
_MAX_SIDE = 2**20
"""Pixels; far more than any image that is opened."""
_Fields = dict[str, type | tuple[type, ...]]
_CONTENT: _Fields = {
    "format": str, "version": int, "fingerprint": str, "description": str,
    "system": (str, NoneType), "options": dict, "messages": list, "images": list,
    "key": (dict, NoneType), "num_layers": int,
}  # fmt: skip
_IMAGE: _Fields = {
    "name": str, "digest": str, "settings": dict, "token_ids": dict, "layout": dict,
}  # fmt: skip


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
    except (_DamagedError, JvlmError, RuntimeError, TypeError, OverflowError) as error:
        raise SessionError(f"{path} is damaged: {reason(error)}") from error


class _DamagedError(Exception):
    """Says what is wrong with a file."""


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
    _check_fields(content, _CONTENT, "the conversation")
    GenerationOptions(**content["options"])
    tensors = mx.load(str(path), format="safetensors")  # nothing is read before it is evaluated
    assert isinstance(tensors, dict)
    images = [
        _read_image(described, tensors.pop(f"images.{index}", None), f"image {index + 1}",
                    model, processor, model_key(model))
        for index, described in enumerate(content["images"])
    ]  # fmt: skip
    messages = _read_messages(content["messages"], images)
    key = _read_key(content["key"])
    layers = _read_layers(content["num_layers"], key, tensors, model)
    tensors.pop("empty", None)
    if tensors:
        raise _DamagedError(f"there is a tensor {quoted(min(tensors))} that nothing refers to")
    arrays = [image.features for image in images] + [array for layer in layers for array in layer]
    finite = [mx.isfinite(array).all() for array in arrays]
    mx.eval(arrays, finite)
    if not all(one.item() for one in finite):
        raise _DamagedError("there is a tensor with numbers that are not finite")
    return SavedSession(
        fingerprint=content["fingerprint"],
        description=content["description"],
        system=content["system"],
        options=content["options"],
        messages=messages,
        key=key,
        layers=layers,
    )


def _check_fields(value: Any, fields: _Fields, where: str) -> None:
    """Refuse what is no object with exactly these fields of these types."""
    if not isinstance(value, dict):
        raise _DamagedError(f"{where} is {quoted(value)}")
    if value.keys() != fields.keys():
        raise _DamagedError(f"{where} has fields {quoted(list(value))}; expected {list(fields)}")
    for name, kinds in fields.items():
        if not isinstance(value[name], kinds) or isinstance(value[name], bool):
            raise _DamagedError(f"{name} of {where} is {quoted(value[name])}")
        # JSON may hold halves of characters, which no tokenizer takes.
        if isinstance(value[name], str) and any("\ud800" <= c <= "\udfff" for c in value[name]):
            raise _DamagedError(f"{name} of {where} is no valid text")


def _read_messages(messages: list[Any], images: list[EncodedImage]) -> list[dict[str, Any]]:
    """Read questions and answers in turn, which refer to every saved image once and in order."""
    used = 0

    def read_part(part: Any, where: str) -> dict[str, Any]:
        nonlocal used
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            _check_fields(part, {"type": str, "text": str}, where)
            return {"type": "text", "text": part["text"]}
        if kind != "image":
            raise _DamagedError(f"{where} is {quoted(part)}, neither text nor a saved image")
        _check_fields(part, {"type": str, "image": int}, where)
        if used == len(images) or part["image"] != used:
            raise _DamagedError(f"{where} is image {quoted(part['image'])}, not the next")
        used += 1
        return {"type": "image", "image": images[used - 1]}

    read: list[dict[str, Any]] = []
    for number, message in enumerate(messages, 1):
        where = f"message {number}"
        asked = number % 2
        _check_fields(message, {"role": str, "content": list if asked else str}, where)
        if message["role"] != ("user" if asked else "assistant"):
            raise _DamagedError(f"{where} has role {quoted(message['role'])}")
        content = message["content"]
        if asked:
            content = [read_part(part, f"part {n} of {where}") for n, part in enumerate(content, 1)]
        read.append({"role": message["role"], "content": content})
    if len(read) % 2:
        raise _DamagedError("the last question has no answer")
    if used < len(images):
        raise _DamagedError("there is an image that no message refers to")
    return read


def _read_image(
    described: Any,
    features: mx.array | None,
    where: str,
    model: Model,
    processor: Processor,
    fingerprint: str,
) -> EncodedImage:
    """Read an image, if the processor in use would tile it in the same way."""
    _check_fields(described, _IMAGE, where)
    saved = described["settings"]
    config = processor.image_processor.config.override(
        ImageOptions(**{field.name: saved.get(field.name) for field in fields(ImageOptions)})
    )
    size = described["layout"].get("resized_size")
    if not (isinstance(size, list) and len(size) == 2 and all(map(_is_side, size))):
        raise _DamagedError(f"{where} has a resized_size of {quoted(size)}")
    layout = tile_layout((size[0], size[1]), config)
    token_ids = processor.image_processor.ids
    for name, value in (("settings", config), ("token_ids", token_ids), ("layout", layout)):
        expected = json.loads(json.dumps(dataclasses.asdict(value)))  # lists, no tuples
        if described[name] != expected:
            raise _DamagedError(
                f"{where} has {name} {quoted(described[name])}, which the processor in use does"
                " not have"
            )
    shape = (layout.num_patch_tokens, model.config.decoder.hidden_size)
    return EncodedImage(
        name=described["name"],
        digest=described["digest"],
        model=fingerprint,
        config=config,
        token_ids=token_ids,
        layout=layout,
        features=_checked(features, shape, model.dtype, f"the features of {where}"),
    )


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MAX_SIDE


def _read_key(saved: dict[str, Any] | None) -> PromptKey | None:
    """Read the key; whether it belongs to the messages is up to whoever uses it."""
    if saved is None:
        return None
    _check_fields(saved, {"elements": list, "lengths": list}, "the key")
    elements, lengths = saved["elements"], saved["lengths"]
    if len(elements) != len(lengths) or not all(
        type(element) in (int, str) and type(length) is int and length > 0
        for element, length in zip(elements, lengths, strict=True)
    ):
        raise _DamagedError("the key is not one of tokens and images")
    return PromptKey(tuple(elements), tuple(lengths))


def _read_layers(
    count: int, key: PromptKey | None, tensors: dict[str, mx.array], model: Model
) -> list[LayerState]:
    decoder = model.config.decoder
    if count not in (0, decoder.num_hidden_layers) or (count and key is None):
        raise _DamagedError(f"there are keys and values of {quoted(count)} layers")
    if key is None or not count:
        return []
    attention = decoder.block.attention
    shape = (1, attention.num_key_value_heads, key.num_tokens, attention.head_dim)
    return [
        LayerState(
            *(
                _checked(tensors.pop(name, None), shape, model.dtype, name)
                for name in (f"layers.{index}.keys", f"layers.{index}.values")
            )
        )
        for index in range(count)
    ]


def _checked(
    array: mx.array | None, shape: tuple[int, ...], dtype: mx.Dtype, where: str
) -> mx.array:
    if array is None:
        raise _DamagedError(f"{where} is missing")
    if array.shape != shape or array.dtype != dtype:
        raise _DamagedError(
            f"{where} has shape {quoted(array.shape)} of {array.dtype}, expected {shape} of {dtype}"
        )
    return array


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
