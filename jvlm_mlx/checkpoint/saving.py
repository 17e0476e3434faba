"""What a written checkpoint has beside its weights, and where it may be written.

Conversion, training and fusing write their `config.json` and copy their files here.
"""

import copy
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..config.model_config import ModelConfig
from ..errors import CheckpointError, ConversionError
from .hub import CARD_FILES, CONFIG_FILES, TOKENIZER_FILES
from .model_card import CARD
from .reader import belongs_to

logger = logging.getLogger(__name__)

CONFIG = "config.json"
RECORD_KEY = "jvlm_mlx"
"""The key of config.json that holds the record. Loading ignores it."""
_RUN_FOLDER = "training"  # where a training's output has its checkpoints


@dataclass(frozen=True)
class Record:
    """Where a converted checkpoint comes from."""

    version: str
    """Of the package that converted it."""
    source: str
    """Repository, or name of the folder, of the first source."""
    revision: str | None
    """Commit of the repository."""
    source_bytes: int
    """Size of the first source's tensors."""
    recipe: str | None
    """Name of the recipe; None without quantization."""
    unpadded_mlp_size: int
    """Width of the tower's MLP without padding."""
    weight_error: dict[str, float]
    """Relative rounding error of weights by module, where anything was rounded: the root of the
    sum of squares of differences, over that of the values."""
    quality: dict[str, Any] | None
    """What `verify` measured, if it was asked to write it down."""


def read_record(config_json: Mapping[str, Any]) -> Record | None:
    """Return the record of an earlier conversion, if there is one.

    Raises:
        CheckpointError: it is malformed.
    """
    values = config_json.get(RECORD_KEY)
    if values is None:
        return None
    kinds = {
        "version": _is_text,
        "source": _is_text,
        "revision": lambda value: value is None or _is_text(value),
        "source_bytes": _is_size,
        "recipe": lambda value: value is None or _is_text(value),
        "unpadded_mlp_size": _is_size,
        "weight_error": lambda value: _is_table(value, _is_number),
        "quality": lambda value: value is None or _is_quality(value),
    }
    if (
        not isinstance(values, dict)
        or values.keys() != kinds.keys()
        or not all(kind(values[name]) for name, kind in kinds.items())
    ):
        raise CheckpointError(
            f"{CONFIG}: {RECORD_KEY} was not written by this version; convert the source again"
        )
    return Record(**values)


def _is_text(value: Any) -> bool:
    # Lone surrogates, which JSON can spell, cannot be written.
    return isinstance(value, str) and not any("\ud800" <= one <= "\udfff" for one in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_table(value: Any, kind: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value)) and all(map(kind, value.values()))


def _is_quality(value: Any) -> bool:
    numbers = ("questions", "tokens", "kl_mean", "top1")
    return (
        isinstance(value, dict)
        and value.keys() == {"reference", *numbers, "feature_cosine"}
        and _is_text(value["reference"])
        and all(_is_number(value[name]) for name in numbers)
        and (value["feature_cosine"] is None or _is_number(value["feature_cosine"]))
    )


def updated_config(
    config_json: dict[str, Any],
    config: ModelConfig,
    *,
    dtype: str,
    mlp_size: int,
    decoder_biases: bool = True,
    quantization: dict[str, Any] | None = None,
    record: Record | None = None,
) -> dict[str, Any]:
    """Return the config.json of what was made of a checkpoint: its own, with what has changed.

    Args:
        config_json: contents of the source's config.json.
        config: the same, as read and corrected by the tensors.
        dtype: of the weights that are not quantized.
        mlp_size: width of the tower's MLP as it is now.
        decoder_biases: whether biases of the decoder that config has are there.
        quantization: entry as mlx-lm reads it; None or empty if nothing is quantized.
        record: of a conversion; None for weights that are no longer the source's.
    """
    config_json = copy.deepcopy(config_json)
    if mlp_size != config.tower.block.mlp.intermediate_size:
        config_json["vision_config"]["block_config"]["ffn_config"]["size"] = mlp_size
    vision, decoder = config_json["vision_config"], config.decoder.block.attention
    for attention, read, stored in (
        (config_json["text_config"]["block_config"]["attn_config"], decoder, decoder_biases),
        (vision["block_config"]["attn_config"], config.tower.block.attention, True),
        (vision["vl_connector_config"]["attn_pooling_config"], config.connector.pooling, True),
    ):
        for key, bias in zip(("q_bias", "k_bias", "v_bias"), read.projection_biases, strict=True):
            attention[key] = bias and stored
    config_json["dtype" if "dtype" in config_json else "torch_dtype"] = dtype
    for key in ("quantization", "quantization_config"):
        config_json.pop(key, None)
        if quantization:
            config_json[key] = quantization
    config_json.pop(RECORD_KEY, None)
    if record is not None:
        config_json[RECORD_KEY] = asdict(record)
    return config_json


def config_text(config_json: dict[str, Any]) -> str:
    """Return config.json as it is written."""
    text = json.dumps(config_json, indent=2, ensure_ascii=False)
    if not _is_text(text):
        text = json.dumps(config_json, indent=2)
    return text + "\n"


def copy_files(source: Path, folder: Path) -> None:
    """Copy tokenizer, template, processor and license files as they are.

    A symbolic link to a file that is not the checkpoint's own may point to anything, and what is
    copied may be uploaded.

    Raises:
        CheckpointError: a file that the checkpoint needs is such a link.
    """
    for name in (*TOKENIZER_FILES, *CONFIG_FILES, *CARD_FILES):
        if name in (CONFIG, CARD) or not (source / name).is_file():
            continue
        if belongs_to(source, source / name):
            shutil.copyfile(source / name, folder / name)
        elif name in CARD_FILES:
            logger.warning("%s is a link to elsewhere and is not copied", source / name)
        else:
            raise CheckpointError(
                f"{source / name} is a link to elsewhere; put the file itself into the folder"
            )


def check_target(
    target: Path, source: Path | None = None, *, adapter: Path | None = None, force: bool
) -> None:
    """Refuse a target that must not be replaced.

    Args:
        target: the folder to write.
        source: folder of the checkpoint that is read; may be replaced by what is made of it,
            but not lie within what is replaced.
        adapter: folder of adapters that are read; is in no way replaced.
        force: whether an existing checkpoint is replaced.

    Raises:
        ConversionError: there is something already, and `force` is not given or would delete
            what is no checkpoint, what is read from, or checkpoints of a training. Or it is
            the current folder.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ConversionError(f"{target} is no folder; give another path")
    if not target.exists():
        return
    with suppress(FileNotFoundError):  # a current folder that is gone holds nothing
        if _holds(target, Path.cwd()):
            raise ConversionError(f"{target} is or contains the current folder; give another path")
    if not any(target.iterdir()):
        return
    if not force:
        raise ConversionError(f"{target} exists already; give another path, or force to replace it")
    if not (target / CONFIG).is_file():
        raise ConversionError(f"{target} is no checkpoint, so it is not replaced; remove it first")
    if source and target.resolve() in source.resolve().parents:
        raise ConversionError(f"{target} contains the source {source}; give another path")
    if adapter and adapter.exists() and _holds(target, adapter):
        raise ConversionError(f"{target} contains the adapter {adapter}; give another path")
    if any((target / _RUN_FOLDER).glob("step-*[0-9]")):
        raise ConversionError(
            f"{target} holds checkpoints of a training in {_RUN_FOLDER}/;"
            " move them away or give another path"
        )


def _holds(target: Path, folder: Path) -> bool:
    """Return whether a folder is the target or lies in it, however either is spelled."""
    folder = folder.resolve()
    return any(target.samefile(one) for one in (folder, *folder.parents))
