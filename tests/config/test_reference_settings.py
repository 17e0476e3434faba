"""Settings mean what they mean to the reference implementation, or are refused by name."""

import json

import pytest

from jvlm_mlx.config.checkpoint_config import CheckpointConfig
from jvlm_mlx.errors import CheckpointError, UnsupportedSettingError
from tests.helpers.changed_config import ABSENT, read_with

TEXT_ATTENTION = "text_config.block_config.attn_config"
VISION_BLOCK = "vision_config.block_config"
CONNECTOR = "vision_config.vl_connector_config"


@pytest.mark.parametrize(
    ("path", "value", "attribute", "expected"),
    [
        # 11 layers: the list of hidden states has 12, with or without a norm at its end.
        ("vision_config.post_lnorm", True, "tower.feature_layers", (8, 2)),
        ("vision_config.post_lnorm", False, "tower.feature_layers", (8, 2)),
        (f"{TEXT_ATTENTION}.softmax_scale", 0.0, "decoder.block.attention.scale", 0.25),
        (f"{TEXT_ATTENTION}.softmax_scale", None, "decoder.block.attention.scale", 0.25),
        (f"{TEXT_ATTENTION}.softmax_scale", 0.5, "decoder.block.attention.scale", 0.5),
        (f"{VISION_BLOCK}.lnorm_config.eps", None, "tower.block.norm.eps", 1e-5),
        (f"{VISION_BLOCK}.lnorm_config.eps", ABSENT, "tower.block.norm.eps", 1e-5),
        (f"{VISION_BLOCK}.lnorm_config.bias", None, "tower.block.norm.bias", False),
        (f"{VISION_BLOCK}.lnorm_config.bias", ABSENT, "tower.block.norm.bias", False),
        (f"{VISION_BLOCK}.lnorm_config.bias", True, "tower.block.norm.bias", True),
        (f"{VISION_BLOCK}.lnorm_config.type", "low_precision", "tower.block.norm.kind", "layer"),
        (f"{VISION_BLOCK}.lnorm_config", ABSENT, "tower.block.norm.kind", "layer"),
        (f"{VISION_BLOCK}.lnorm_config", None, "tower.block.norm.bias", False),
        # Queries and keys are projected from 2 x 48 concatenated features: 3 heads of 32.
        (f"{CONNECTOR}.attn_pooling_config.head_dim", None, "connector.pooling.head_dim", 32),
        (f"{TEXT_ATTENTION}.o_bias", ABSENT, "decoder.block.attention.output_bias", False),
        ("text_config.additional_vocab_size", None, "decoder.embedding_rows", 512),
        ("text_config.rope_scaling", {}, "decoder.rope.scaling", None),
        (
            "text_config.rope_scaling",
            {"rope_type": "linear", "factor": 2.0, "type": "yarn"},
            "decoder.rope.scaling",
            {"rope_type": "linear", "factor": 2.0},
        ),
    ],
)  # fmt: skip
def test_settings_are_read_as_the_reference_reads_them(
    config_json, path, value, attribute, expected
):
    found = read_with(config_json, path, value)
    for name in attribute.split("."):
        found = getattr(found, name)
    assert found == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("silu", "silu"), ("swish", "silu"), ("SiLU", "silu"), ("gelu", "gelu"),
        ("gelu_python", "gelu"), ("GELU", "gelu"), ("gelu_pytorch_tanh", "gelu_pytorch_tanh"),
        ("gelu_new", "gelu_pytorch_tanh"), ("gelu_fast", "gelu_pytorch_tanh"),
    ],
)  # fmt: skip
def test_activations_have_several_names(config_json, name, expected):
    config = read_with(config_json, f"{VISION_BLOCK}.ffn_config.activation_type", name)
    assert config.tower.block.mlp.activation == expected


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("scaling", "kind", "problem"),
    [
        ({"type": "linear", "factor": 2.0}, UnsupportedSettingError, "type = 'linear'"),
        ({"type": "yarn"}, UnsupportedSettingError, "type = 'yarn'"),
        ({"rope_type": "longrope"}, UnsupportedSettingError, "rope_type = 'longrope'"),
        ({"rope_type": "dynamic", "factor": 2}, UnsupportedSettingError, "rope_type = 'dynamic'"),
        (YARN | {"attention_factor": 1.5}, UnsupportedSettingError, "attention_factor = 1.5"),
        (YARN | {"truncate": False}, UnsupportedSettingError, "truncate = False"),
        (YARN | {"original_max_position_embeddings": None}, CheckpointError, "is missing"),
        ({"rope_type": "linear", "factor": 0}, CheckpointError, "factor is 0"),
        ({"rope_type": "linear", "factor": "2"}, CheckpointError, "factor is '2'"),
        ({"rope_type": "linear"}, CheckpointError, "factor is missing"),
        ([1, 2], CheckpointError, "must be a JSON object"),
        (
            {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4,
             "original_max_position_embeddings": 64},
            CheckpointError, "high_freq_factor 4.0 is not above",
        ),
    ],
)  # fmt: skip
def test_rope_scaling_that_would_be_another_one_is_refused(config_json, scaling, kind, problem):
    with pytest.raises(kind, match=rf"rope_scaling.*{problem}"):
        read_with(config_json, "text_config.rope_scaling", scaling)


@pytest.mark.parametrize("theta", [1e-300, 0.5, 1, 1e40])
def test_a_base_without_wavelengths_is_refused(config_json, theta):
    with pytest.raises(CheckpointError, match=r"rope_theta is .* above 1"):
        read_with(config_json, "text_config.rope_theta", theta)


def test_heads_are_rotated_in_pairs(config_json):
    with pytest.raises(CheckpointError, match="head_dim is 15; expected an even number"):
        read_with(config_json, f"{TEXT_ATTENTION}.head_dim", 15)


def generation(golden_folder, values):
    files = {
        name: json.loads((golden_folder / "tiny" / name).read_text())
        for name in ("config.json", "preprocessor_config.json")
    }
    return CheckpointConfig.read(files | {"generation_config.json": values}).generation


def test_sampling_defaults_are_read(golden_folder):
    found = generation(
        golden_folder,
        {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0,
         "repetition_penalty": 1.1, "max_new_tokens": 100, "eos_token_id": [3, 4],
         "transformers_version": "4.57.0"},
    )  # fmt: skip
    assert (found.do_sample, found.temperature, found.top_p, found.top_k) == (True, 0.6, 0.95, 20)
    assert (found.min_p, found.repetition_penalty, found.max_new_tokens) == (0.0, 1.1, 100)
    assert found.stop_token_ids == {3, 4, 511}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, {}),
        ({"do_sample": False, "temperature": 0.6, "top_p": 0.9}, {}),
        ({"do_sample": True}, {"temperature": 1.0, "top_k": 50}),
        (
            {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.9, "min_p": 0.1},
            {"temperature": 0.6, "top_k": 20, "top_p": 0.9, "min_p": 0.1},
        ),
        (
            {"repetition_penalty": 1.1, "max_new_tokens": 9},
            {"repetition_penalty": 1.1, "max_tokens": 9},
        ),
    ],
)
def test_they_are_options_of_a_request(golden_folder, values, expected):
    assert generation(golden_folder, values).options == expected


def test_nothing_is_said_without_a_file(golden_folder):
    found = generation(golden_folder, {})
    assert found.stop_token_ids == {511}
    assert {found.do_sample, found.temperature, found.top_p, found.top_k, found.min_p} == {None}


@pytest.mark.parametrize(
    ("key", "value"),
    [("temperature", -1), ("top_p", 2), ("top_k", -1), ("do_sample", 1), ("max_new_tokens", 0),
     ("repetition_penalty", 0), ("num_beams", 4), ("eos_token_id", "end"), ("eos_token_id", 2**31)],
)  # fmt: skip
def test_defaults_that_cannot_be_are_named(golden_folder, key, value):
    with pytest.raises(CheckpointError, match=rf"generation_config\.json\.{key}"):
        generation(golden_folder, {key: value})
