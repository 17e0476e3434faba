"""The cost that no clock can blur: how many kernels each stage launches."""

import mlx.core as mx
import pytest
from mlx_lm.models import qwen3

from benchmarks.harness.copies import count_copies
from benchmarks.harness.counting import count_kernels
from benchmarks.harness.models import released_model_config, weightless_model
from benchmarks.kernels import filled_cache, own_copies, own_counts

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


def test_layers_copy_no_input_but_the_queries_of_a_batch():
    """Queries and keys of a batch lie side by side; the kernel wants queries by themselves."""
    assert own_copies() == {
        "decode step": 0,
        "decode step, 3 requests": 1,
        "prefill chunk": 0,
        "tile": 0,
    }


@pytest.mark.parametrize(
    ("kind", "run"),
    [
        ("norm", lambda x: mx.fast.rms_norm(x.transpose(0, 2, 1, 3), None, 1e-6)),
        ("norm", lambda x: mx.fast.rms_norm(x[:, :, 1:], None, 1e-6)),
        ("rope", lambda x: rope(x[:, :, 1:].transpose(0, 2, 1, 3))),
        ("reshape", lambda x: mx.flatten(x.transpose(0, 2, 1, 3), -2)),
        ("attention", lambda x: attend(x[:, 1:])),
        ("attention", lambda x: attend(x, keys=x.swapaxes(2, 3).swapaxes(2, 3)[..., ::2])),
        ("mask", lambda x: attend(x, mask=mx.ones((2, 1, 4, 4), mx.bool_))),
    ],
)
def test_hidden_copies_are_found(kind, run):
    x = mx.random.normal((2, 4, 4, 8), key=mx.random.key(0))
    assert count_copies(lambda: run(x))[kind] >= 1


def test_contiguous_inputs_are_not_copied():
    x = mx.random.normal((2, 4, 4, 8), key=mx.random.key(0))
    transposed = x.transpose(0, 2, 1, 3)
    for run in (
        lambda: mx.fast.rms_norm(x, None, 1e-6),
        lambda: rope(x),
        lambda: rope(transposed),
        lambda: attend(x, mask=mx.ones((2, 4, 4, 4), mx.bool_)),
        lambda: mx.flatten(x, -2),
    ):
        assert count_copies(run).total() == 0


def rope(x):
    return mx.fast.rope(x, x.shape[-1], traditional=False, base=10.0, scale=1.0, offset=0)


def attend(queries, keys=None, mask=None):
    keys = queries if keys is None else keys
    queries = queries[..., : keys.shape[-1]]
    return mx.fast.scaled_dot_product_attention(queries, keys, keys, scale=1.0, mask=mask)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
def test_gelu_is_one_kernel(dtype):
    from jvlm_mlx.model.ops import gelu_tanh

    x = mx.zeros((2, 3), dtype)
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
