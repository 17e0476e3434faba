"""What a conversion writes into config.json about itself, and how it reads it back."""

import copy
from collections import Counter
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..config.dtypes import BY_CODE
from ..config.model_config import ModelConfig
from ..conversion.plan import Plan
from ..errors import CheckpointError
from .quantization import Quantization

KEY = "jvlm_mlx"
"""The key of config.json that holds the record. Loading ignores it."""


@dataclass(frozen=True)
class Record:
    """Where a converted checkpoint comes from."""

    version: str
    """Of the package that converted it."""
    source: str
    """Repository, or name of the folder, of the original."""
    revision: str | None
    """Commit of the repository."""
    source_bytes: int
    """Size of the original's tensors."""
    recipe: str | None
    """Name of the recipe; None without quantization."""
    unpadded_mlp_size: int
    """Width of the tower's MLP without padding."""
    weight_error: dict[str, float]
    """Relative rounding error of weights by part, where anything was rounded: the root of the
    sum of squares of differences, over that of the values."""
    quality: dict[str, Any] | None
    """What `verify` measured, if it was asked to write it down."""


def read_record(config: dict[str, Any]) -> Record | None:
    """Return the record of an earlier conversion, if there is one.

    Raises:
        CheckpointError: it is malformed.
    """
    values = config.get(KEY)
    if values is None:
        return None
    names = {field.name for field in fields(Record)}
    if (
        not isinstance(values, dict)
        or values.keys() != names
        or not isinstance(values["unpadded_mlp_size"], int)
        or not isinstance(values["weight_error"], dict)
    ):
        raise CheckpointError(
            f"config.json: {KEY} was not written by this version; convert the original again"
        )
    return Record(**values)


def output_config(
    config_json: dict[str, Any], config: ModelConfig, plan: Plan, record: Record
) -> dict[str, Any]:
    """Return the output's config.json: the source's, with what has changed.

    Args:
        config_json: contents of the source's config.json.
        config: the same, as they were read and found true.
        plan: of the conversion.
        record: about it.
    """
    config_json = copy.deepcopy(config_json)
    block = config_json["vision_config"]["block_config"]
    if plan.mlp_size != config.tower.block.mlp.intermediate_size:
        block["ffn_config"]["size"] = plan.mlp_size
    attention = config_json["text_config"]["block_config"]["attn_config"]
    biases = config.decoder.block.attention.projection_biases
    for key, bias in zip(("q_bias", "k_bias", "v_bias"), biases, strict=True):
        attention[key] = bias and plan.decoder_biases
    dtypes = {parameter.path: parameter.dtype for parameter in plan.parameters}
    dtype_key = "dtype" if "dtype" in config_json else "torch_dtype"
    config_json[dtype_key] = BY_CODE[dtypes["decoder.norm.weight"]].name
    quantization = quantization_entries(plan)
    for key in ("quantization", "quantization_config"):
        config_json.pop(key, None)
        if quantization:
            config_json[key] = quantization
    config_json.pop(KEY, None)
    config_json[KEY] = asdict(record)
    return config_json


def quantization_entries(plan: Plan) -> dict[str, Any]:
    """Return the entry of config.json as mlx-lm reads it; empty if nothing is quantized.

    The format of most weights stands at the top. Each layer that differs has an entry under
    its path: its own format, or false for none.
    """
    layers = {
        parameter.path.removesuffix(".weight"): parameter
        for parameter in plan.parameters
        if parameter.path.removesuffix(".weight") in plan.layers
    }
    weights: Counter[Quantization] = Counter()
    for parameter in layers.values():
        if parameter.quantization:
            weights[parameter.quantization] += parameter.values
    if not weights:
        return {}
    common = weights.most_common(1)[0][0]
    entries: dict[str, Any] = asdict(common)
    for path, parameter in layers.items():
        if parameter.quantization != common:
            entries[path] = asdict(parameter.quantization) if parameter.quantization else False
    return entries
