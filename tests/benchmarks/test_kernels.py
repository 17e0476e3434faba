"""The cost that no clock can blur: how many kernels each piece of work asks of the device."""

import mlx.core as mx
import pytest
from mlx_lm.models import qwen3

from benchmarks.harness.counting import count_kernels
from benchmarks.harness.models import released_model_config, weightless_model
from benchmarks.kernels import filled_cache, own_counts

MAX_PER_DECODE_STEP = 424


@pytest.fixture(scope="module")
def released():
    return weightless_model(released_model_config())


def test_the_counts_of_the_released_geometry(released):
    # Lower is better: lower the numbers with the code. A higher one is a regression.
    assert own_counts(released) == {
        "decode step": 424,
        "prefill chunk": 356,
        "tile": 280,
        "merge 32 vectors": 5,
    }


def test_a_decode_step_stays_below_the_bound(released):
    assert own_counts(released)["decode step"] <= MAX_PER_DECODE_STEP


def test_gelu_is_one_kernel():
    from jvlm_mlx.model.ops import gelu_tanh

    x = mx.zeros((2, 3))
    mx.eval(x)
    assert count_kernels(lambda: gelu_tanh(x)).total() == 1


def test_the_method_agrees_with_what_is_known_of_mlx_lm():
    arguments = qwen3.ModelArgs(
        model_type="qwen3", hidden_size=64, num_hidden_layers=28, intermediate_size=128,
        num_attention_heads=4, rms_norm_eps=1e-6, vocab_size=100, num_key_value_heads=8,
        max_position_embeddings=1000, rope_theta=1e6, head_dim=128, tie_word_embeddings=False,
    )  # fmt: skip
    model = qwen3.Model(arguments)
    mx.eval(model.parameters())
    cache = filled_cache(released_model_config(), mx.float32)
    # Three projections where this project has one, and two of the MLP where it has one.
    counts = count_kernels(lambda: mx.argmax(model(mx.array([[5]]), cache=cache)[:, -1]))
    assert counts.total() == 536
    assert counts["Matmul"] == 7 * 28 + 1
