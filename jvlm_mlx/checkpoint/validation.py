"""Compares config, tokenizer and stored tensors, before a module is built or memory allocated."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config.dtypes import FLOAT_DTYPES
from ..config.json_file import quoted, read_json
from ..config.model_config import ModelConfig
from ..errors import CheckpointError
from ..processing.tokenizer import MAX_TOKEN_CHARACTERS
from .hub import TOKENIZER_FILES
from .quantization import Quantization
from .reader import CheckpointFiles, StoredTensor, shown

FLOATING = tuple(dtype.code for dtype in FLOAT_DTYPES.values())
MAX_LAYERS = 10_000
"""Where a single file of many is looked at, and its tensors do not limit their number."""
MAX_TOKENIZER_BYTES = 64 * 2**20
"""Of each tokenizer file; Qwen3's tokenizer.json has 11 MB."""
MAX_PATTERN_CHARACTERS = 10_000
"""Of every other text but templates: regular expressions and replacements among them."""
_FLOAT16_LIMIT = 65520.0  # from here on, rounding gives infinity
# The bits of the magnitude, and the smallest that mean infinity or NaN.
_MAGNITUDES: dict[str, tuple[npt.DTypeLike, int, int]] = {
    "F32": (np.uint32, 0x7FFFFFFF, 0x7F800000),
    "F16": (np.uint16, 0x7FFF, 0x7C00),
    "BF16": (np.uint16, 0x7FFF, 0x7F80),
}
# 8-bit scales that are NaN, by mode of quantization: the mask to apply, and the value.
_SCALES = {"mxfp4": (0xFF, 0xFF), "mxfp8": (0xFF, 0xFF), "nvfp4": (0x7F, 0x7F)}


def check_sizes(files: CheckpointFiles, config: ModelConfig, *, whole: bool = True) -> None:
    """Refuse sizes in config.json that the stored tensors cannot be of.

    Args:
        files: of the checkpoint.
        config: of the model.
        whole: whether the files are all there are; else only absurd numbers of layers are refused.

    Raises:
        CheckpointError: there are more layers than tensors, or a side is longer than any.
    """
    tower, decoder, connector = config.tower, config.decoder, config.connector
    layers = {
        "vision_config.n_layers": tower.num_used_layers,
        "text_config.n_layers": decoder.num_hidden_layers,
    }
    longest = max((side for tensor in files.tensors.values() for side in tensor.shape), default=0)
    sides = {
        "vision_config.hidden_size": tower.hidden_size,
        "vision_config.patch_size": tower.patch_values,
        "vision_config.input_size": tower.num_patches,
        "vision_config.vit_layers": tower.feature_size,
        "text_config.hidden_size": decoder.hidden_size,
        "text_config.vocab_size": decoder.vocab_size,
        "text_config.embedding_size": decoder.embedding_size,
        "text_config.additional_vocab_size": decoder.additional_vocab_size,
        "vision_config.vl_connector_config.attn_pooling_config": connector.pooling.query_size,
        "vision_config.vl_connector_config.mlp_projector_config.size": (
            connector.projector.intermediate_size
        ),
        "vision_config.block_config.attn_config": tower.block.attention.query_size,
        "vision_config.block_config.ffn_config.size": tower.block.mlp.intermediate_size,
        "text_config.block_config.attn_config": decoder.block.attention.query_size,
        "text_config.block_config.ffn_config.size": decoder.block.mlp.intermediate_size,
    }
    # Packed weights are up to 16 times shorter than the weights themselves.
    for claimed, limit, what in (
        (layers, len(files.tensors) if whole else MAX_LAYERS, "there are tensors for"),
        (sides if whole else {}, 16 * longest, "any stored tensor has place for"),
    ):
        for name, size in claimed.items():
            if size > limit:
                raise CheckpointError(f"config.json: {name} gives {quoted(size)}, more than {what}")


def check_tensors(
    files: CheckpointFiles,
    expected: Mapping[str, tuple[int, ...]],
    optional: Collection[str] = (),
    unused: Callable[[str], bool] | None = None,
    quantized: Mapping[str, Quantization] | None = None,
) -> None:
    """Compare names, shapes and types of all stored tensors with what the model needs.

    Args:
        files: of the checkpoint.
        expected: shape of each tensor by its stored name.
        optional: names that may be absent.
        unused: tells names that nothing needs and that may be there; None for none.
        quantized: by the stored name of a weight without its last part.

    Raises:
        CheckpointError: names the first that is missing, misshapen, surplus, or of another type,
            with file, expected and found shape.
    """
    tensors = files.tensors
    problems = []
    for name, shape in expected.items():
        tensor = tensors.get(name)
        if tensor is None:
            if name not in optional:
                problems.append(f"{name} is missing; expected shape {shape}")
        elif tensor.shape != shape and not _has_padding_rows(tensor, shape):
            problems.append(
                f"{name} in {tensor.file.name} has shape {quoted(tensor.shape)}; expected {shape}"
            )
        else:
            layer, _, kind = name.rpartition(".")
            allowed = _dtypes((quantized or {}).get(layer), kind)
            if tensor.dtype not in allowed:
                problems.append(
                    f"{name} in {tensor.file.name} is stored as {tensor.dtype};"
                    f" expected {', '.join(allowed)}"
                )
    problems += [
        f"{shown(name)} in {tensor.file.name} of shape {quoted(tensor.shape)} has no place in"
        " the model"
        for name, tensor in sorted(tensors.items())
        if name not in expected and not (unused and unused(name))
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise CheckpointError(f"{files.folder}: {problems[0]}{more}")


def _has_padding_rows(tensor: StoredTensor, shape: tuple[int, ...]) -> bool:
    """Allow a head with more rows than there are tokens: padding to a rounder table size."""
    is_head = tensor.name.endswith("lm_head.weight")
    return is_head and tensor.shape[1:] == shape[1:] and tensor.shape[0] > shape[0]


def _dtypes(quantization: Quantization | None, kind: str) -> tuple[str, ...]:
    if quantization is None or kind == "bias":
        return FLOATING
    if kind == "weight":
        return ("U32",)
    return FLOATING if quantization.mode == "affine" else ("U8",)


def check_tokenizer_files(folder: Path, config: ModelConfig) -> None:
    """Refuse tokenizer files of another model, or that cost more than any tokenizer needs.

    Raises:
        CheckpointError: a file is too large or no JSON, a token or pattern in it too long, or
            there are tokens that the embedding has no rows for.
    """
    for name in TOKENIZER_FILES:
        file = folder / name
        if not file.is_file():
            continue
        size = file.stat().st_size
        if size > MAX_TOKENIZER_BYTES:
            raise CheckpointError(
                f"{file} has {size} bytes; at most {MAX_TOKENIZER_BYTES} are read"
            )
        if name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
            _check_texts(file, read_json(file))
        elif name == "tokenizer.json":
            content = read_json(file)
            if isinstance(content, dict):
                _check_texts(file, {key: content[key] for key in content if key != "model"})
                model = content.get("model")
                vocab = model.get("vocab") if isinstance(model, dict) else None
                check_token_ids(vocab if isinstance(vocab, dict) else {}, config)
        elif name == "vocab.json":
            vocab = read_json(file)
            check_token_ids(vocab if isinstance(vocab, dict) else {}, config)


def _check_texts(file: Path, content: Any) -> None:
    stack = [(content, "")]
    while stack:
        value, key = stack.pop()
        if isinstance(value, dict):
            stack += [(one, str(name)) for name, one in value.items()]
            # added_tokens.json has tokens as keys.
            stack += [(name, "content") for name in value]
        elif isinstance(value, list):
            stack += [(one, key) for one in value]
        elif isinstance(value, str) and key != "chat_template":
            is_token = key == "content" or key.endswith("_token")
            # The tokenizer library needs gigabytes for a token of 100,000 characters.
            limit = MAX_TOKEN_CHARACTERS if is_token else MAX_PATTERN_CHARACTERS
            if len(value) > limit:
                raise CheckpointError(
                    f"{file}: {key} is a text of {len(value)} characters; at most {limit} are"
                    " expected"
                )


def check_token_ids(ids: Mapping[str, Any], config: ModelConfig) -> None:
    """Refuse tokens that the embedding has no rows for.

    Raises:
        CheckpointError: names the token and its id.
    """
    rows = config.decoder.embedding_size + config.decoder.additional_vocab_size
    for token, token_id in ids.items():
        if not isinstance(token_id, int) or not 0 <= token_id < rows:
            raise CheckpointError(
                f"the tokenizer has {quoted(token)} with id {quoted(token_id)}, but the embedding"
                f" has {rows} rows; the tokenizer is of another model"
            )


def weight_problem(
    values: npt.NDArray[np.generic], dtype: str, mode: str = "", *, float16: bool = False
) -> str | None:
    """Return what is wrong with stored values, if anything.

    Args:
        values: as stored; bfloat16 as 16-bit integers.
        dtype: as safetensors spells it.
        mode: of quantization, for 8-bit scales.
        float16: whether values must also be small enough for float16.
    """
    if not values.size or dtype == "U32":
        return None
    damaged = "has NaN or infinite values; it was damaged before or when it was saved"
    if dtype == "U8":
        mask, nan = _SCALES.get(mode, (0, 1))
        return damaged if np.any(values.astype(np.uint8) & mask == nan) else None
    bits, mask, infinite = _MAGNITUDES[dtype]
    # Magnitudes are ordered as their bits are, and integers are compared much faster.
    largest = int(np.max(values.view(bits) & mask))
    if largest >= infinite:
        return damaged
    if float16 and dtype != "F16":
        # The upper half of a float32 is a bfloat16.
        wide = largest << 16 if dtype == "BF16" else largest
        magnitude = float(np.uint32(wide).view(np.float32))
        if magnitude >= _FLOAT16_LIMIT:
            return (
                f"has values up to {magnitude:.4g}, too large for float16; use bfloat16 or float32"
            )
    return None


def check_values(
    tensor: StoredTensor, values: npt.NDArray[Any], mode: str = "", *, float16: bool = False
) -> None:
    """Refuse stored values with a problem; arguments as for `weight_problem`.

    Raises:
        CheckpointError: names the tensor and its file.
    """
    problem = weight_problem(values, tensor.dtype, mode, float16=float16)
    if problem:
        raise CheckpointError(f"{tensor.file}: {tensor.name} {problem}")
