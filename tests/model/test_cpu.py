"""The CPU's own arithmetic equals MLX's functions up to rounding."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import jvlm_mlx
from jvlm_mlx.model import cpu, ops
from jvlm_mlx.model.ops import gelu_tanh


def gelu_in_float64(x):
    x = np.array(x).astype(np.float64)
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def test_gelu_is_right_to_rounding_everywhere():
    x = mx.concatenate([mx.linspace(-30, 30, 60_001), mx.array([0.0, -1e30, 1e4, 1e-30])])
    expected = gelu_in_float64(x[:-4])
    # Eight units of the last place of a number near 8, where tanh saturates.
    np.testing.assert_allclose(cpu.gelu_tanh(x)[:-4], expected, atol=4e-6, rtol=1e-6)
    np.testing.assert_array_equal(np.array(cpu.gelu_tanh(x)[-4:-1]), [0, 0, 1e4])


def test_gelu_in_bfloat16_is_computed_in_float32():
    x = mx.random.normal((1000,), key=mx.random.key(0)).astype(mx.bfloat16)
    found = gelu_tanh(x)
    assert found.dtype == mx.bfloat16
    expected = mx.array(gelu_in_float64(x.astype(mx.float32)).astype(np.float32))
    # Rounded once, at the end; one unit more where the sum falls between two.
    np.testing.assert_allclose(
        np.array(found.astype(mx.float32)), np.array(expected), rtol=2**-7, atol=1e-5
    )


@pytest.mark.parametrize(
    ("tiles", "heads", "patches", "blocks"), [(1, 3, 9, 2**20), (2, 3, 9, 400), (3, 5, 40, 1)]
)
def test_attention_in_blocks_equals_mlx(monkeypatch, tiles, heads, patches, blocks):
    monkeypatch.setattr(cpu, "BLOCK_BYTES", blocks)
    queries, keys, values = (
        mx.random.normal((tiles, heads, patches, 72), key=mx.random.key(seed)) for seed in range(3)
    )
    found = cpu.attention(queries, keys, values, 72**-0.5)
    expected = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=72**-0.5)
    # The same sums with another exponential: a few units in the last place of numbers near 1.
    np.testing.assert_allclose(found, expected, atol=5e-6)


def test_attention_survives_scores_far_apart():
    queries = mx.array([[[[1000.0], [-1000.0], [0.0]]]])
    keys = mx.array([[[[1.0], [0.0], [-1.0]]]])
    values = mx.array([[[[1.0], [2.0], [4.0]]]])
    found = cpu.attention(queries, keys, values, 1.0)
    np.testing.assert_allclose(np.array(found)[0, 0, :, 0], [1, 4, 7 / 3], rtol=1e-6)


def gradients(function, *inputs):
    """Return values and gradients of a function for a cotangent by chance."""
    cotangent = mx.random.normal(function(*inputs).shape, key=mx.random.key(99))
    outputs, slopes = mx.vjp(function, inputs, [cotangent])
    return [np.array(array) for array in (*outputs, *slopes)]


def test_the_slope_of_gelu_is_that_of_mlx():
    x = mx.concatenate([mx.linspace(-12, 12, 20_001), mx.array([0.0, -1e4, 1e4])])

    def by_mlx(x):
        return 0.5 * x * (1 + mx.tanh(np.sqrt(2 / np.pi).item() * (x + 0.044715 * x**3)))

    for found, wanted in zip(
        gradients(cpu.gelu_tanh, x[:-3]), gradients(by_mlx, x[:-3]), strict=True
    ):
        # Rounding of numbers up to 12, times cotangents up to 4.
        np.testing.assert_allclose(found, wanted, atol=2e-5, rtol=2e-6)
    slopes = gradients(cpu.gelu_tanh, x[-3:])[1]
    assert np.isfinite(slopes).all()


def test_the_gate_and_its_slopes_are_those_of_mlx():
    gate = mx.concatenate([mx.linspace(-100, 100, 20_001), mx.array([0.0, -1e4, 1e4])])
    value = mx.random.normal(gate.shape, key=mx.random.key(1))

    def by_mlx(gate, value):
        return nn.silu(gate) * value

    for found, wanted in zip(
        gradients(cpu.silu_gate, gate, value), gradients(by_mlx, gate, value), strict=True
    ):
        # Far below zero the sigmoid is 0 here and e^x there: nothing beside numbers near 1.
        np.testing.assert_allclose(found, wanted, atol=2e-5, rtol=2e-6)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2)])
def test_differentiable_attention_has_the_gradients_of_mlx(causal, heads, groups):
    queries = mx.random.normal((2, heads, 37, 16), key=mx.random.key(0))
    keys = 3 * mx.random.normal((2, groups, 37, 16), key=mx.random.key(1))
    values = mx.random.normal((2, groups, 37, 16), key=mx.random.key(2))

    def found(*inputs):
        return cpu.differentiable_attention(*inputs, 0.25, causal=causal)

    def wanted(*inputs):
        mask = "causal" if causal else None
        return mx.fast.scaled_dot_product_attention(*inputs, scale=0.25, mask=mask)

    inputs = queries, keys, values
    for one, other in zip(gradients(found, *inputs), gradients(wanted, *inputs), strict=True):
        # The same sums with another exponential; gradients sum up 37 of them.
        np.testing.assert_allclose(one, other, atol=3e-5)


def test_it_is_used_for_float32_on_a_cpu_only():
    with mx.stream(mx.cpu):
        assert ops.uses_cpu_arithmetic(mx.zeros(1))
        assert not ops.uses_cpu_arithmetic(mx.zeros(1, mx.bfloat16))
        with ops.mlx_kernels_only():
            assert not ops.uses_cpu_arithmetic(mx.zeros(1))


def test_the_tower_has_gradients_while_training(golden_folder):
    """Exponentials by the bits of a float have slopes of their own."""
    model, _ = jvlm_mlx.load(golden_folder / "tiny")
    model.train()
    tower = model.vision_tower
    pixels = mx.random.normal((1, 81, 588), key=mx.random.key(0))

    def loss(weight):
        tower.layers[0].attention.qkv.weight = weight
        return mx.square(tower(pixels)).mean()

    weight = tower.layers[0].attention.qkv.weight
    gradient = mx.grad(loss)(weight)
    # Finite differences along the gradient; float32 leaves about three digits.
    step = 1e-2 * gradient / mx.sqrt(mx.square(gradient).sum())
    change = (loss(weight + step) - loss(weight - step)).item()
    expected = 2 * mx.sum(gradient * step).item()
    assert abs(change - expected) < 0.05 * abs(expected)
