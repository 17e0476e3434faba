"""Recipes and options: which layer gets which format, and what is refused."""

import pytest

from jvlm_mlx.checkpoint.quantization import Quantization
from jvlm_mlx.conversion.recipes import (
    RECIPES,
    ConversionOptions,
    base_quantization,
    choose_quantization,
    more_quantization,
)
from jvlm_mlx.errors import RequestError

FOUR = Quantization(group_size=64, bits=4, mode="affine")
SIX = Quantization(group_size=64, bits=6, mode="affine")


def chosen(recipe, layer, tied_head=False):
    return choose_quantization(RECIPES[recipe], layer, FOUR, last_layer=27, tied_head=tied_head)


@pytest.mark.parametrize(
    ("layer", "uniform", "mixed", "language_only"),
    [
        ("vision_tower.patch_embedding", None, None, None),
        ("vision_tower.layers.0.mlp.down", FOUR, FOUR, None),
        ("vision_tower.layers.24.attention.qkv", FOUR, FOUR, None),
        ("connector.pooling.kv", FOUR, SIX, None),
        ("connector.projector.down", FOUR, SIX, None),
        ("decoder.embedding", FOUR, FOUR, FOUR),
        ("decoder.layers.0.attention.qkv", FOUR, SIX, FOUR),
        ("decoder.layers.1.mlp.up", FOUR, FOUR, FOUR),
        ("decoder.layers.2.mlp.up", FOUR, FOUR, FOUR),
        ("decoder.layers.27.mlp.down", FOUR, SIX, FOUR),
        ("lm_head", FOUR, SIX, FOUR),
    ],
)
def test_a_recipe_decides_by_layer(layer, uniform, mixed, language_only):
    assert chosen("uniform", layer) == uniform
    assert chosen("mixed", layer) == mixed
    assert chosen("language-only", layer) == language_only


def test_a_tied_embedding_is_treated_as_the_head_that_it_is():
    assert chosen("mixed", "decoder.embedding", tied_head=True) == SIX


@pytest.mark.parametrize(
    ("base", "more"),
    [
        ((2, 32, "affine"), (4, 32, "affine")),
        ((3, 64, "affine"), (5, 64, "affine")),
        ((5, 128, "affine"), (8, 128, "affine")),
        ((8, 64, "affine"), (8, 64, "affine")),
        ((None, None, "nvfp4"), (8, 32, "mxfp8")),
        ((4, 32, "mxfp4"), (8, 32, "mxfp8")),
    ],
)
def test_more_bits_are_the_next_step(base, more):
    found = more_quantization(base_quantization(*base))
    assert (found.bits, found.group_size, found.mode) == more


def test_defaults_are_four_bits_in_groups_of_64():
    assert ConversionOptions(quantize=True).quantization == FOUR
    assert ConversionOptions(quantize=True).recipe_name == "uniform"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"q_bits": 4}, "q_bits is for quantization; add quantize"),
        ({"recipe": "mixed"}, "recipe is for quantization; add quantize"),
        ({"quantize": True, "q_bits": 7}, "q_bits 7 is not one of 2, 3, 4, 5, 6, 8"),
        ({"quantize": True, "q_group_size": 48}, "q_group_size 48 is not one of 32, 64, 128"),
        ({"quantize": True, "q_mode": "fp8"}, "q_mode 'fp8' is not one of affine, mxfp4"),
        ({"quantize": True, "q_mode": "mxfp4", "q_bits": 8}, "mxfp4 has 4 bits in groups of 32"),
        ({"quantize": True, "recipe": "best"}, "recipe 'best' is not one of uniform, mixed"),
        ({"dtype": "float64"}, "dtype 'float64' is not one of float32, float16, bfloat16"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(RequestError, match=message):
        ConversionOptions(**options)
