"""The CPU's own arithmetic equals MLX's functions up to rounding."""

import mlx.core as mx
import numpy as np
import pytest

import jvlm_mlx
from jvlm_mlx.model import cpu
from jvlm_mlx.model.layers import gelu_tanh


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


def test_only_float32_on_a_cpu_takes_this_way():
    with mx.stream(mx.cpu):
        assert cpu.is_cpu_float32(mx.zeros(1))
        assert not cpu.is_cpu_float32(mx.zeros(1, mx.bfloat16))


def test_the_tower_has_gradients_while_training(golden_folder):
    """Results by the bits of a float have none; training must take the other way."""
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
