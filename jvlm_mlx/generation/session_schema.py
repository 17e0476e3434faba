"""Checks of a saved conversation against the model and the processor in use.

Shapes, dtypes, lengths, options, image settings and messages are those that the model expects, or
the file is refused. A message refers to saved images only, never to a path or an address.
"""

import dataclasses
import json
from types import NoneType
from typing import Any

import mlx.core as mx

from ..config.image_config import ImageOptions
from ..config.json_file import quoted
from ..model import Model
from ..processing.processor import Processor
from ..processing.tiling import tile_layout
from .caches import LayerState
from .image_encoding import EncodedImage
from .model_identity import model_key
from .options import JSON_OPTIONS, GenerationOptions
from .prompt import PromptKey

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


class DamagedError(Exception):
    """Says what is wrong with a file."""


def read_conversation(
    content: dict[str, Any], tensors: dict[str, mx.array], model: Model, processor: Processor
) -> tuple[list[dict[str, Any]], PromptKey | None, list[LayerState]]:
    """Return messages with their images, and the KV cache with its key. On the device's worker.

    Args:
        content: the metadata of a file.
        tensors: of the file, not evaluated; all of them are used up.
        model: in use.
        processor: in use.

    Raises:
        DamagedError: says what does not fit.
        JvlmError: an option is out of range.
    """
    _check_fields(content, _CONTENT, "the conversation")
    if not_saved := content["options"].keys() - JSON_OPTIONS:
        raise DamagedError(f"there is no option {quoted(min(not_saved))}")
    GenerationOptions.of(None, content["options"])
    images = [
        _read_image(described, tensors.pop(f"images.{index}", None), f"image {index + 1}",
                    model, processor)
        for index, described in enumerate(content["images"])
    ]  # fmt: skip
    messages = _read_messages(content["messages"], images)
    key = _read_key(content["key"])
    layers = _read_layers(content["num_layers"], key, tensors, model)
    tensors.pop("empty", None)
    if tensors:
        raise DamagedError(f"there is a tensor {quoted(min(tensors))} that nothing refers to")
    arrays = [image.features for image in images] + [array for layer in layers for array in layer]
    finite = [mx.isfinite(array).all() for array in arrays]
    mx.eval(arrays, finite)
    if not all(one.item() for one in finite):
        raise DamagedError("there is a tensor with numbers that are not finite")
    return messages, key, layers


def _check_fields(value: Any, fields: _Fields, where: str) -> None:
    """Refuse what is no object with exactly these fields of these types."""
    if not isinstance(value, dict):
        raise DamagedError(f"{where} is {quoted(value)}")
    if value.keys() != fields.keys():
        raise DamagedError(f"{where} has fields {quoted(list(value))}; expected {list(fields)}")
    for name, kinds in fields.items():
        if not isinstance(value[name], kinds) or isinstance(value[name], bool):
            raise DamagedError(f"{name} of {where} is {quoted(value[name])}")
        # JSON may hold halves of characters, which no tokenizer takes.
        if isinstance(value[name], str) and any("\ud800" <= c <= "\udfff" for c in value[name]):
            raise DamagedError(f"{name} of {where} is no valid text")


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
            raise DamagedError(f"{where} is {quoted(part)}, neither text nor a saved image")
        _check_fields(part, {"type": str, "image": int}, where)
        if used == len(images) or part["image"] != used:
            raise DamagedError(f"{where} is image {quoted(part['image'])}, not the next")
        used += 1
        return {"type": "image", "image": images[used - 1]}

    read: list[dict[str, Any]] = []
    for number, message in enumerate(messages, 1):
        where = f"message {number}"
        asked = number % 2
        _check_fields(message, {"role": str, "content": list if asked else str}, where)
        if message["role"] != ("user" if asked else "assistant"):
            raise DamagedError(f"{where} has role {quoted(message['role'])}")
        content = message["content"]
        if asked:
            content = [read_part(part, f"part {n} of {where}") for n, part in enumerate(content, 1)]
        read.append({"role": message["role"], "content": content})
    if len(read) % 2:
        raise DamagedError("the last question has no answer")
    if used < len(images):
        raise DamagedError("there is an image that no message refers to")
    return read


def _read_image(
    described: Any,
    features: mx.array | None,
    where: str,
    model: Model,
    processor: Processor,
) -> EncodedImage:
    """Read an image, if the processor in use would tile it in the same way."""
    _check_fields(described, _IMAGE, where)
    saved = described["settings"]
    config = processor.image_processor.config.override(
        ImageOptions(
            **{field.name: saved.get(field.name) for field in dataclasses.fields(ImageOptions)}
        )
    )
    size = described["layout"].get("resized_size")
    if not (isinstance(size, list) and len(size) == 2 and all(map(_is_side, size))):
        raise DamagedError(f"{where} has a resized_size of {quoted(size)}")
    layout = tile_layout((size[0], size[1]), config)
    token_ids = processor.image_processor.ids
    for name, value in (("settings", config), ("token_ids", token_ids), ("layout", layout)):
        expected = json.loads(json.dumps(dataclasses.asdict(value)))  # lists, no tuples
        if described[name] != expected:
            raise DamagedError(
                f"{where} has {name} {quoted(described[name])}, which the processor in use does"
                " not have"
            )
    shape = (layout.num_patch_tokens, model.config.decoder.hidden_size)
    return EncodedImage(
        name=described["name"],
        digest=described["digest"],
        model=model_key(model),
        config=config,
        token_ids=token_ids,
        layout=layout,
        features=_checked(features, shape, model.feature_dtype, f"the features of {where}"),
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
        raise DamagedError("the key is not one of tokens and images")
    return PromptKey(tuple(elements), tuple(lengths))


def _read_layers(
    count: int, key: PromptKey | None, tensors: dict[str, mx.array], model: Model
) -> list[LayerState]:
    decoder = model.config.decoder
    if count not in (0, decoder.num_hidden_layers) or (count and key is None):
        raise DamagedError(f"there is a KV cache of {quoted(count)} layers")
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
        raise DamagedError(f"{where} is missing")
    if array.shape != shape or array.dtype != dtype:
        raise DamagedError(
            f"{where} has shape {quoted(array.shape)} of {array.dtype}, expected {shape} of {dtype}"
        )
    return array
