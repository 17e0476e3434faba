"""Numbers of config.json and preprocessor_config.json that no network can have."""

import copy
import json
import math

import pytest

from jvlm_mlx.config.config_reader import ConfigReader
from jvlm_mlx.config.model_config import ModelConfig
from jvlm_mlx.errors import CheckpointError

VISION_BLOCK, TEXT_BLOCK = "vision_config.block_config", "text_config.block_config"
CONNECTOR = "vision_config.vl_connector_config"


@pytest.fixture(scope="module")
def config(golden_folder):
    return json.loads((golden_folder / "tiny" / "config.json").read_text())


def with_value(config, path, value):
    config = copy.deepcopy(config)
    *sections, key = path.split(".")
    place = config
    for section in sections:
        place = place[section]
    place[key] = value
    return config


def read(config):
    return ModelConfig.read(ConfigReader(config, "config.json"))


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
def test_a_size_is_above_zero(config, path, value):
    with pytest.raises(CheckpointError, match=f"{path} is {value}; expected an? .* above 0"):
        read(with_value(config, path, value))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "path", ["text_config.rope_theta", f"{TEXT_BLOCK}.attn_config.softmax_scale"]
)
def test_a_number_is_finite(config, path, value):
    with pytest.raises(CheckpointError, match=f"{path} is {value}; expected a finite number"):
        read(with_value(config, path, value))


def test_a_tile_has_whole_sides(config):
    with pytest.raises(CheckpointError, match="input_size"):
        read(with_value(config, "vision_config.input_size", [0, 378]))


def test_keys_are_shared_by_as_many_queries_each(config):
    heads = config["text_config"]["block_config"]["attn_config"]["n_heads"]
    with pytest.raises(CheckpointError, match="n_kv_heads"):
        read(with_value(config, f"{TEXT_BLOCK}.attn_config.n_kv_heads", heads - 1 or 2))


def test_no_added_tokens_are_none_and_not_fewer(config):
    read(with_value(config, "text_config.additional_vocab_size", 0))
    with pytest.raises(CheckpointError, match="additional_vocab_size is -1"):
        read(with_value(config, "text_config.additional_vocab_size", -1))
