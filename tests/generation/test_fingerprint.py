"""A model that computes something else is another model to every cache."""

import mlx.core as mx
import pytest

import jvlm_mlx
from jvlm_mlx.checkpoint.adapters import AdapterConfig, adapted_layers, add_adapters
from jvlm_mlx.generation.fingerprint import fingerprint


@pytest.fixture
def model(golden_folder):
    return jvlm_mlx.load(golden_folder / "tiny")[0]


def test_replaced_weights_make_another_model(model):
    before = fingerprint(model)
    assert fingerprint(model) == before
    model.decoder.norm.weight = model.decoder.norm.weight * 2
    assert fingerprint(model) != before


def test_a_new_array_in_the_place_of_an_old_one(model):
    """Memory of arrays that are gone is used again, so their addresses tell nothing."""
    layer = model.decoder.layers[0].mlp.down
    known = {fingerprint(model)}
    for count in range(2, 12):
        for _ in range(2):
            layer.weight = layer.weight * 0.9
            mx.eval(layer.weight)
        known.add(fingerprint(model))
        assert len(known) == count


def test_adapters_that_count_less_make_another_model(model):
    layers = ("decoder.layers.0.mlp.down",)
    add_adapters(model, AdapterConfig("lora", 2, 1.0, 0.0, layers), 0)
    (adapter,) = adapted_layers(model).values()
    before = fingerprint(model)
    adapter.scale = 0.5
    assert fingerprint(model) != before
    adapter.scale = 1.0
    assert fingerprint(model) == before


def test_no_weight_is_kept_alive(model):
    fingerprint(model)
    held = mx.get_active_memory()
    layer = model.decoder.layers[0].mlp.down
    size = layer.weight.nbytes
    layer.weight = mx.zeros((1,))
    mx.eval(layer.weight)
    assert mx.get_active_memory() <= held - size + 1024
