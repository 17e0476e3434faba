"""Numbers of config.json and preprocessor_config.json that no network can have."""

import math

import pytest

from jvlm_mlx.errors import CheckpointError
from tests.helpers.changed_config import read_with

VISION_BLOCK, TEXT_BLOCK = "vision_config.block_config", "text_config.block_config"
CONNECTOR = "vision_config.vl_connector_config"


@pytest.mark.parametrize("value", [0, -2])
@pytest.mark.parametrize(
    "path",
    [
        "vision_config.hidden_size",
        "vision_config.n_layers",
        "vision_config.patch_size",
        "vision_config.output_size",
        f"{VISION_BLOCK}.attn_config.n_heads",
        f"{VISION_BLOCK}.attn_config.head_dim",
        f"{VISION_BLOCK}.ffn_config.size",
        f"{CONNECTOR}.pooling_h",
        f"{CONNECTOR}.mlp_projector_config.size",
        "text_config.hidden_size",
        "text_config.n_layers",
        "text_config.vocab_size",
        "text_config.embedding_size",
        "text_config.rope_theta",
        f"{TEXT_BLOCK}.attn_config.n_kv_heads",
        f"{TEXT_BLOCK}.lnorm_config.eps",
    ],
)
def test_a_size_is_above_zero(config_json, path, value):
    with pytest.raises(CheckpointError, match=f"{path} is {value}; expected an? .* above 0"):
        read_with(config_json, path, value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "path", ["text_config.rope_theta", f"{TEXT_BLOCK}.attn_config.softmax_scale"]
)
def test_a_number_is_finite(config_json, path, value):
    with pytest.raises(CheckpointError, match=f"{path} is {value}; expected a finite number"):
        read_with(config_json, path, value)


def test_a_tile_has_whole_sides(config_json):
    with pytest.raises(CheckpointError, match="input_size"):
        read_with(config_json, "vision_config.input_size", [0, 378])


def test_keys_are_shared_by_as_many_queries_each(config_json):
    heads = config_json["text_config"]["block_config"]["attn_config"]["n_heads"]
    with pytest.raises(CheckpointError, match="n_kv_heads"):
        read_with(config_json, f"{TEXT_BLOCK}.attn_config.n_kv_heads", heads - 1 or 2)


def test_no_added_tokens_are_none_and_not_fewer(config_json):
    read_with(config_json, "text_config.additional_vocab_size", 0)
    with pytest.raises(CheckpointError, match="additional_vocab_size is -1"):
        read_with(config_json, "text_config.additional_vocab_size", -1)
