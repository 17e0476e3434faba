"""Names and shapes are known without a model, and a model is built without random numbers."""

import itertools
import json

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from jvlm_mlx.config.config_reader import ConfigReader
from jvlm_mlx.config.model_config import ModelConfig
from jvlm_mlx.model import Model, parameter_shapes
from jvlm_mlx.model.layers import Embedding, Linear, quantized_layer
from jvlm_mlx.model.parameters import is_quantizable


@pytest.fixture
def config_json(golden_folder):
    return json.loads((golden_folder / "tiny" / "config.json").read_text())


def read(config_json):
    return ModelConfig.read(ConfigReader(config_json, "config.json"))


def shapes_of(model):
    return {path: array.shape for path, array in tree_flatten(model.parameters())}


def variants(config_json):
    """Change settings that add parameters or take them away, one after the other."""
    text, vision = config_json["text_config"], config_json["vision_config"]
    connector = vision["vl_connector_config"]
    pooling = connector["attn_pooling_config"]
    changes = [
        (config_json, "tie_word_embeddings", True),
        (text, "additional_vocab_size", 0),
        (text, "embedding_size", 640),
        (text["block_config"]["attn_config"], "q_lnorm", False),
        (text["block_config"]["attn_config"], "k_bias", True),
        (text["block_config"]["attn_config"], "o_bias", True),
        (text["block_config"]["ffn_config"], "gated_activation", False),
        (vision, "vit_layers", [-1, 2, 3]),
        (vision, "patch_embedding_bias", False),
        (vision["block_config"]["ffn_config"], "gated_activation", True),
        (connector, "padding_embed_type", None),
        (connector["mlp_projector_config"], "bias", True),
        (pooling, "q_bias", False),
        (pooling, "o_bias", False),
    ]
    yield config_json
    for section, key, value in changes:
        section[key] = value
        yield config_json


def test_shapes_are_those_of_the_model(config_json):
    found = set()
    for variant in variants(config_json):
        config = read(variant)
        model = Model(config)
        shapes = dict(parameter_shapes(config))
        assert shapes == shapes_of(model)
        layers = {
            f"{path}.weight"
            for path, module in model.named_modules()
            if isinstance(module, nn.Linear | nn.Embedding)
        }
        assert layers == {path for path, shape in shapes.items() if is_quantizable(path, shape)}
        found.add(frozenset(shapes.items()))
    assert len(found) == 15  # every change is one


def test_shapes_of_ten_million_layers_come_one_by_one(config_json):
    config_json["text_config"].update(
        n_layers=10**7, num_hidden_layers=10**7, hidden_size=2**31 - 1
    )
    config_json["vision_config"]["output_size"] = 2**31 - 1
    shapes = list(itertools.islice(parameter_shapes(read(config_json)), 1000))
    assert ("decoder.embedding.weight", (528, 2**31 - 1)) in shapes


def test_building_a_model_draws_no_random_numbers_and_allocates_nothing(config_json):
    config_json["text_config"]["vocab_size"] = 10**9
    config = read(config_json)
    mx.random.seed(7)
    expected = mx.random.normal((3,))
    mx.random.seed(7)
    before = mx.get_active_memory()
    Model(config)
    assert mx.get_active_memory() - before < 10_000
    assert mx.array_equal(mx.random.normal((3,)), expected)


@pytest.mark.parametrize(
    ("group_size", "bits", "mode"),
    [(64, 4, "affine"), (32, 3, "affine"), (32, 4, "mxfp4"), (32, 8, "mxfp8"), (16, 4, "nvfp4")],
)
@pytest.mark.parametrize("kind", ["linear", "biased linear", "embedding"])
def test_quantized_layers_are_those_of_mlx(group_size, bits, mode, kind):
    layer = Embedding(6, 128) if kind == "embedding" else Linear(128, 6, kind != "linear")
    options = {"group_size": group_size, "bits": bits, "mode": mode}
    expected, found = layer.to_quantized(**options), quantized_layer(layer, **options)
    assert type(found) is type(expected)
    assert str(found) == str(expected)
    mine, theirs = (dict(tree_flatten(module.parameters())) for module in (found, expected))
    assert {path: (array.shape, array.dtype) for path, array in mine.items()} == {
        path: (array.shape, array.dtype) for path, array in theirs.items()
    }
    # With the same packed weights it computes the same.
    layer.weight = mx.random.normal(layer.weight.shape, key=mx.random.key(0))
    expected = layer.to_quantized(**options)
    found.update(expected.parameters())
    x = mx.array([1, 5]) if kind == "embedding" else mx.ones((2, 128))
    assert mx.array_equal(found(x), expected(x))
