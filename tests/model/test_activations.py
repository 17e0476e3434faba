"""How large the numbers inside a model become, against all that its kernels write."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from jvlm_mlx.diagnostics.sample_model import narrow_config, random_model
from jvlm_mlx.model.activations import (
    connector_activations,
    decoder_activations,
    float16_verdict,
    largest_per_layer,
    tower_activations,
)
from jvlm_mlx.model.windows import window_patches


@pytest.fixture
def model():
    return random_model(narrow_config())


@pytest.fixture
def embeddings():
    return mx.random.normal((1, 12, 256), key=mx.random.key(0))


@pytest.fixture
def tiles():
    return mx.random.uniform(-1, 1, (2, 81, 588), key=mx.random.key(1))


def test_every_layer_is_looked_into(model, embeddings, tiles):
    assert list(largest_per_layer(decoder_activations(model, embeddings))) == [0, 1, 2]
    assert list(largest_per_layer(tower_activations(model, tiles))) == [0, 1, 2]


def test_nothing_that_a_projection_reads_or_writes_is_larger(model, embeddings, monkeypatch):
    seen = []
    linear = nn.Linear.__call__

    def watched(self, x):
        out = linear(self, x)
        seen.extend(float(mx.max(mx.abs(array)).item()) for array in (x, out))
        return out

    found = largest_per_layer(decoder_activations(model, embeddings))
    monkeypatch.setattr(nn.Linear, "__call__", watched)
    mx.eval(model.decoder(embeddings))
    assert max(found.values()) >= max(seen)
    # And it is of this order: the residual stream is the largest here.
    assert max(found.values()) < 4 * max(seen)


@pytest.mark.parametrize(
    "path",
    ["attention.qkv", "attention.out", "mlp.up", "mlp.down", "attention_norm", "mlp_norm"],
)
@pytest.mark.parametrize("module", ["tower", "decoder"])
def test_wherever_a_large_number_comes_up_its_layer_shows_it(
    model, embeddings, tiles, module, path
):
    layers = (model.decoder if module == "decoder" else model.vision_tower).layers
    part = layers[1]
    for name in path.split("."):
        part = part[name]
    part.weight = part.weight * 1e6
    if module == "decoder":
        found = largest_per_layer(decoder_activations(model, embeddings))
    else:
        found = largest_per_layer(tower_activations(model, tiles))
    assert found[0] < 1000
    assert found[1] > 65_504


def test_the_product_of_a_gated_mlp_counts(model, embeddings):
    """Both halves may hold where their product does not."""
    up = model.decoder.layers[1].mlp.up
    up.weight = up.weight * 300
    model.decoder.layers[1].mlp.down.weight = mx.zeros_like(model.decoder.layers[1].mlp.down.weight)
    found = largest_per_layer(decoder_activations(model, embeddings))
    assert found[1] > 65_504


@pytest.mark.parametrize("path", ["pooling.kv", "projector.up"])
def test_the_connector_is_looked_into(model, path):
    features = mx.random.normal((1, 81, 288), key=mx.random.key(2))
    patches, inside = map(mx.array, window_patches((9, 9), (2, 2)))
    arguments = features, mx.ones((1, 81)), patches, inside
    before = float(np.array(connector_activations(model, *arguments)))
    part = model.connector
    for name in path.split("."):
        part = part[name]
    part.weight = part.weight * 1e6
    assert before < 1000
    assert float(np.array(connector_activations(model, *arguments))) > 65_504


def test_what_is_not_finite_is_infinite(model, embeddings):
    norm = model.decoder.layers[2].mlp_norm
    norm.weight = mx.where(mx.arange(256) == 3, mx.nan, norm.weight)
    found = largest_per_layer(decoder_activations(model, embeddings))
    assert found[1] < 1000
    assert found[2] == float("inf")


@pytest.mark.parametrize(
    ("largest", "verdict"),
    [(0.0, "safe"), (32_752.0, "safe"), (32_753.0, "close"), (65_504.0, "close"),
     (65_505.0, "overflows"), (float("inf"), "overflows")],
)  # fmt: skip
def test_float16_is_safe_with_room_to_spare(largest, verdict):
    assert float16_verdict(largest) == verdict
