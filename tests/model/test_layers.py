"""Fewer kernels, the same bits; and what the reference implementation computes in float32."""

import dataclasses
import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import jvlm_mlx
from jvlm_mlx import _mlx_lm
from jvlm_mlx.config.blocks import AttentionConfig, NormConfig
from jvlm_mlx.config.config_reader import ConfigReader
from jvlm_mlx.config.dtypes import ModuleDtypes
from jvlm_mlx.config.model_config import ModelConfig
from jvlm_mlx.model import ops
from jvlm_mlx.model.connector import AttentionPooling
from jvlm_mlx.model.layers import Attention

NORM = NormConfig(kind="rms", eps=1e-6, bias=False)
ATTENTION = AttentionConfig(
    num_attention_heads=6, num_key_value_heads=2, head_dim=16, scale=0.25,
    projection_biases=(False,) * 3, output_bias=False, q_norm=NORM, k_norm=NORM,
)  # fmt: skip


def random(*shape, seed=0):
    return mx.random.normal(shape, key=mx.random.key(seed))


def attention(config=ATTENTION, dtype=mx.float32):
    layer = Attention(32, config, nn.RoPE(config.head_dim))
    layer.qkv.weight = random(*layer.qkv.weight.shape, seed=1)
    layer.out.weight = random(*layer.out.weight.shape, seed=2)
    for name, seed in (("q_norm", 3), ("k_norm", 4)):
        if name in layer:
            layer[name].weight = random(config.head_dim, seed=seed)
    layer.set_dtype(dtype)
    layer.eval()
    return layer


def one_by_one(layer, x, offset):
    """Queries and keys, each with a norm and a rotation of its own."""
    config = layer._config
    sizes = config.num_attention_heads, config.num_key_value_heads
    qkv = mx.unflatten(layer.qkv(x), -1, (-1, config.head_dim)).transpose(0, 2, 1, 3)
    queries, keys, _ = mx.split(qkv, (sizes[0], sum(sizes)), axis=1)
    queries, keys = layer.q_norm(queries), layer.k_norm(keys)
    return layer.rope(queries, offset=offset), layer.rope(keys, offset=offset)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
@pytest.mark.parametrize(
    ("batch", "length", "offset"), [(1, 1, 7), (1, 5, 0), (3, 1, mx.array([2, 0, 9])), (2, 4, 3)]
)
def test_heads_share_norm_and_rotation_bit_for_bit(dtype, batch, length, offset):
    layer = attention(dtype=dtype)
    x = random(batch, length, 32, seed=5).astype(dtype)
    qkv = mx.unflatten(layer.qkv(x), -1, (-1, 16))
    found = layer._queries_and_keys(qkv, offset)
    for one, other in zip(found, one_by_one(layer, x, offset), strict=True):
        assert one.dtype == dtype
        assert mx.array_equal(one, other)


def test_replaced_norms_are_used():
    layer = attention()
    x = random(1, 3, 32)
    before = layer(x)
    layer.prepare()
    assert mx.array_equal(layer(x), before)
    weight = layer.k_norm.weight
    layer.k_norm.weight = 2 * weight
    assert not mx.array_equal(layer(x), before)
    layer.load_weights([("k_norm.weight", weight)], strict=False)
    assert mx.array_equal(layer(x), before)


def test_norms_have_gradients_in_either_mode():
    layer = attention()
    x = random(1, 3, 32)

    def loss(weight):
        layer.q_norm.weight = weight
        return mx.square(layer(x)).sum()

    weight = layer.q_norm.weight
    evaluating = mx.grad(loss)(weight)
    layer.train()
    training = mx.grad(loss)(weight)
    assert np.abs(np.array(training)).max() > 0.1
    np.testing.assert_allclose(evaluating, training, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("q_norm", "k_norm"), [(None, None), (NORM, None), (None, NORM)], ids=["none", "q", "k"]
)
def test_norms_may_be_absent(q_norm, k_norm):
    layer = attention(dataclasses.replace(ATTENTION, q_norm=q_norm, k_norm=k_norm))
    layer.prepare()
    assert layer(random(1, 3, 32)).shape == (1, 3, 32)


def test_the_mean_of_a_window_does_not_overflow_in_float16():
    config = dataclasses.replace(
        ATTENTION, num_attention_heads=1, num_key_value_heads=1, q_norm=None, k_norm=None
    )
    pooling = AttentionPooling(4, 4, config)
    pooling.q.weight = mx.full((16, 4), 1e-5)
    pooling.kv.weight = mx.full((32, 4), 1e-5)
    pooling.out.weight = mx.ones((4, 16))
    pooling.set_dtype(mx.float16)
    # Together 160,000, and float16 ends at 65,504.
    found = pooling(mx.full((2, 4, 4), 40_000, mx.float16))
    assert found.dtype == mx.float16
    assert mx.all(mx.isfinite(found))


def test_the_last_hidden_state_may_be_without_norm(golden_folder):
    """The list of hidden states has one more than layers even where `post_lnorm` is false."""
    config = json.loads((golden_folder / "tiny" / "config.json").read_text())
    config["vision_config"].update(post_lnorm=False, vit_layers=[-1, -2])
    tower = jvlm_mlx.Model(ModelConfig.read(ConfigReader(config, "config.json"))).vision_tower
    tower.update({"layers": [{"mlp": {"down": {"bias": random(48)}}} for _ in tower.layers]})
    last, before = tower.hidden_states(random(1, 81, 588))
    assert len(tower.layers) == 11
    assert "final_norm" not in tower
    assert mx.array_equal(last, before)
    assert mx.any(last != 0)


def test_a_mask_of_decode_steps_is_shared_by_the_layers():
    cache = _mlx_lm.BatchKVCache([1, 0])
    cache.update_and_fetch(mx.zeros((2, 1, 4, 8)), mx.zeros((2, 1, 4, 8)))
    mask = cache.make_mask(1)
    found = ops.decoding_mask(mask, (2, 6, 1))
    assert found.shape == (2, 6, 1, 5)
    assert mx.array_equal(found, mx.broadcast_to(mask, found.shape))
    assert np.array(found, copy=False).flags.c_contiguous
    for unchanged in (None, "causal"):
        assert ops.decoding_mask(unchanged, (2, 6, 1)) is unchanged
    assert ops.decoding_mask(mask, (2, 6, 9)) is mask  # copied once, where it is used
    assert ops.decoding_mask(mask[:1], (1, 6, 1)).shape == (1, 1, 1, 5)


@pytest.mark.parametrize("causal", [True, False])
def test_padded_heads_are_the_same_attention(monkeypatch, causal):
    """Where a GPU has neural accelerators; that its results are the same is for a Mac to say."""
    heads = [random(2, 3, 20, 72, seed=seed) for seed in range(3)]
    arguments = {"scale": 72**-0.5, "mask": "causal" if causal else None}
    with ops.mlx_kernels_only():
        expected = ops.attention(*heads, **arguments)
        monkeypatch.setattr(ops, "has_neural_accelerators", lambda: True)
        sizes = []
        whole = _mlx_lm.scaled_dot_product_attention

        def watched(queries, *others, **options):
            sizes.append(queries.shape[-1])
            return whole(queries, *others, **options)

        monkeypatch.setattr(_mlx_lm, "scaled_dot_product_attention", watched)
        found = ops.attention(*heads, **arguments)
    assert sizes == [96]
    # Sums of 96 products are taken in another order than sums of 72.
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_heads_are_padded_only_where_it_helps(monkeypatch):
    assert not ops.has_neural_accelerators() or mx.metal.is_available()
    monkeypatch.setattr(ops, "has_neural_accelerators", lambda: True)
    monkeypatch.setattr(mx, "pad", None)
    with ops.mlx_kernels_only():
        for length, size in ((1, 72), (20, 64), (20, 128)):
            heads = [random(1, 2, length, size)] * 3
            assert ops.attention(*heads, scale=1.0).shape == (1, 2, length, size)


MIXED = ModuleDtypes(tower=mx.float16, connector=mx.float32, decoder=mx.bfloat16)


@pytest.mark.parametrize("checkpoint", ["tiny", "tiny-mlx-4bit"])
def test_every_stage_computes_in_the_type_of_its_module(golden_folder, named_case, checkpoint):
    model, processor = jvlm_mlx.load(golden_folder / checkpoint)
    inputs = named_case("shapes").inputs(processor)
    expected = model(**inputs)
    model, _ = jvlm_mlx.load(golden_folder / checkpoint, dtype=MIXED)
    seen = {}

    def watch(module, name):
        for _, part in module.named_modules():
            if isinstance(part, nn.Linear | nn.QuantizedLinear | nn.RMSNorm | nn.LayerNorm):
                part.__class__ = watched(type(part), seen.setdefault(name, set()))

    def watched(kind, dtypes):
        def call(self, x):
            y = kind.__call__(self, x)
            dtypes.update((x.dtype, y.dtype))
            return y

        return type(kind.__name__, (kind,), {"__call__": call})

    watch(model.vision_tower, "tower")
    watch(model.connector, "connector")
    watch(model.decoder, "decoder")
    cache = model.make_cache()
    logits = model(**inputs, cache=cache)
    assert seen == {"tower": {mx.float16}, "connector": {mx.float32}, "decoder": {mx.bfloat16}}
    assert (model.dtype, model.feature_dtype) == (mx.bfloat16, mx.float32)
    assert {logits.dtype, cache[0].keys.dtype, cache[-1].values.dtype} == {mx.bfloat16}
    # Eight bits of mantissa in the decoder.
    assert np.abs(np.array(logits.astype(mx.float32)) - np.array(expected)).max() < 0.5
