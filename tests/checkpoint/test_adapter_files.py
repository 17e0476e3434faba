"""Adapters of strangers: compared with the model before anything is made, refused in one line."""

import mlx.core as mx
import pytest

import jvlm_mlx
from jvlm_mlx.checkpoint.adapters import (
    AdapterConfig,
    adapted_layers,
    adapter_parameters,
    add_adapters,
    base_digest,
    load_adapter,
)
from jvlm_mlx.errors import CheckpointError
from tests.helpers.converting import edit_json, edit_weights

PATH = "decoder.layers.0.mlp.up"
CONFIG = AdapterConfig("lora", 2, 1.0, 0.0, (PATH, "decoder.layers.1.attention.qkv"))


@pytest.fixture
def model(golden_folder):
    return jvlm_mlx.load(golden_folder / "tiny")[0]


@pytest.fixture
def adapter(tmp_path, golden_folder):
    """The folder of an adapter for the small checkpoint."""
    model, _ = jvlm_mlx.load(golden_folder / "tiny")
    digest = base_digest(model)
    add_adapters(model, CONFIG, seed=0)
    assert base_digest(model) == digest
    arrays = adapter_parameters(model)
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), arrays)
    CONFIG.write(tmp_path, model="someone/base", base_digest=digest)
    return tmp_path


def refusal(model, adapter):
    before = mx.get_peak_memory()
    with pytest.raises(CheckpointError) as caught:
        load_adapter(model, adapter)
    assert mx.get_peak_memory() - before < 10_000_000
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"rank": 0}, "rank is 0; expected an integer above 0"),
        ({"rank": 2**40}, "rank is"),
        ({"rank": 2**30}, "lora_a in adapters.safetensors has shape (64, 2)"),
        ({"rank": True}, "rank is True"),
        ({"scale": "x" * 10_000}, "scale is 'xxx"),
        ({"dropout": None}, "dropout is missing"),
        ({"keys": []}, "keys is []; expected a list of paths"),
        ({"keys": [PATH, 3]}, "expected a list of paths"),
        ({"keys": ["x" * 10_000]}, "which this model has not"),
        ({"keys": [PATH]}, "has no place in the model"),
        ({"keys": ["decoder.embedding"]}, "which this model has not"),
    ],
)
def test_configs_that_do_not_fit(model, adapter, values, expected):
    edit_json(
        adapter / "adapter_config.json", lambda config: config["lora_parameters"].update(values)
    )
    assert expected in refusal(model, adapter)


@pytest.mark.parametrize("text", ["[]", "7", '{"fine_tune_type": ', "[" * 10_000])
def test_configs_that_are_no_objects(model, adapter, text):
    (adapter / "adapter_config.json").write_text(text)
    assert "adapter_config.json" in refusal(model, adapter)


def test_values_that_are_no_numbers_are_refused_and_the_model_stays_as_it_is(model, adapter):
    def change(tensors):
        tensors[f"{PATH}.lora_b"][0, 0] = float("nan")

    edit_weights(adapter, change, "adapters.safetensors")
    assert f"{PATH}.lora_b has NaN or infinite values" in refusal(model, adapter)
    assert not adapted_layers(model)


def test_integers_in_place_of_numbers(model, adapter):
    def change(tensors):
        tensors[f"{PATH}.lora_b"] = tensors[f"{PATH}.lora_b"].astype("uint32")

    edit_weights(adapter, change, "adapters.safetensors")
    assert "is stored as U32; expected F32" in refusal(model, adapter)


@pytest.mark.parametrize("recorded", [True, False])
def test_another_base_is_said(golden_folder, adapter, caplog, recorded):
    def change(config):
        del config["base_digest"]
        if recorded:
            config["base_digest"] = "0" * 32

    load_adapter(jvlm_mlx.load(golden_folder / "tiny")[0], adapter)
    assert not caplog.records
    edit_json(adapter / "adapter_config.json", change)
    load_adapter(jvlm_mlx.load(golden_folder / "tiny")[0], adapter)
    messages = [record.getMessage() for record in caplog.records]
    if recorded:
        (message,) = messages
        assert "was trained for 'someone/base', and this is another model" in message
    else:
        assert not messages


def test_the_digest_of_the_base_is_that_of_its_norms(golden_folder):
    digests = {
        base_digest(jvlm_mlx.load(folder, dtype=dtype)[0])
        for folder in (golden_folder / "tiny", golden_folder / "tiny-mlx-4bit")
        for dtype in ("float32", "bfloat16")
    }
    assert len(digests) == 1
    assert base_digest(jvlm_mlx.load("demo")[0]) not in digests


def test_loading_an_adapter_leaves_random_numbers_alone(model, adapter):
    mx.random.seed(7)
    expected = mx.random.uniform(shape=(3,)).tolist()
    mx.random.seed(7)
    load_adapter(model, adapter)
    assert mx.random.uniform(shape=(3,)).tolist() == expected
