"""A model that computes something else is another model: to caches, and to saved files."""

import mlx.core as mx
import numpy as np
import pytest

import jvlm_mlx
from jvlm_mlx.checkpoint.adapters import AdapterConfig, adapted_layers, add_adapters
from jvlm_mlx.generation.finiteness import widen
from jvlm_mlx.generation.model_identity import model_digest, model_key


@pytest.fixture
def model(golden_folder):
    return jvlm_mlx.load(golden_folder / "tiny")[0]


@pytest.fixture(params=[model_key, model_digest])
def identify(request):
    return request.param


def test_replaced_weights_make_another_model(model, identify):
    before = identify(model)
    assert identify(model) == before
    model.decoder.norm.weight = model.decoder.norm.weight * 2
    assert identify(model) != before


def test_a_new_array_in_the_place_of_an_old_one(model, identify):
    """Memory of arrays that are gone is used again, so their addresses tell nothing."""
    layer = model.decoder.layers[0].mlp.down
    seen = {identify(model)}
    for count in range(2, 12):
        for _ in range(2):
            layer.weight = layer.weight * 0.9
            mx.eval(layer.weight)
        seen.add(identify(model))
        assert len(seen) == count


def test_adapters_that_count_less_make_another_model(model, identify):
    layers = ("decoder.layers.0.mlp.down",)
    add_adapters(model, AdapterConfig("lora", 2, 1.0, 0.0, layers), 0)
    (adapter,) = adapted_layers(model).values()
    before = identify(model)
    adapter.scale = 0.5
    assert identify(model) != before


def test_the_digest_is_that_of_the_content(model, golden_folder):
    """Two loads are two models to caches, but one in saved files."""
    again = jvlm_mlx.load(golden_folder / "tiny")[0]
    assert model_digest(again) == model_digest(model)
    assert model_key(again) != model_key(model)


@pytest.mark.parametrize("place", [0, 1, 1234, -1])
def test_every_value_counts(model, golden_folder, place):
    """A sample of them would let a model pass for another."""
    changed = np.array(model.decoder.layers[0].mlp.down.weight)
    changed.reshape(-1)[place] *= -1
    other = jvlm_mlx.load(golden_folder / "tiny")[0]
    other.decoder.layers[0].mlp.down.weight = mx.array(changed)
    assert model_digest(other) != model_digest(model)


def test_a_wider_type_is_the_same_model(golden_folder):
    model, _ = jvlm_mlx.load(golden_folder / "tiny", dtype="float16")
    before = model_key(model), model_digest(model)
    widen(model, "vision_tower", "connector")
    assert model.vision_tower.position_embedding.dtype == mx.bfloat16
    assert (model_key(model), model_digest(model)) == before


def test_no_weight_is_kept_alive(model, identify):
    identify(model)
    held = mx.get_active_memory()
    layer = model.decoder.layers[0].mlp.down
    size = layer.weight.nbytes
    layer.weight = mx.zeros((1,))
    mx.eval(layer.weight)
    assert mx.get_active_memory() <= held - size + 1024
