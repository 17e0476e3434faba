"""The comparison with the reference notices what it is there for, and nothing else."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from jvlm_mlx import _mlx_lm
from jvlm_mlx.diagnostics import comparison, equality, kernels
from jvlm_mlx.diagnostics.comparison import Sample, row_error
from jvlm_mlx.diagnostics.sample_model import narrow_config
from jvlm_mlx.model import layers, ops

ON_GPU = mx.default_device().type == mx.gpu


@pytest.fixture(scope="module")
def sample():
    return Sample(narrow_config(), mx.float32)


@pytest.fixture(scope="module")
def findings():
    """Of the whole comparison, in float32."""
    return {
        finding.name: finding
        for finding in equality.check_equality(narrow_config(), [mx.float32], mx.float32)
    }


def test_this_machine_computes_what_it_should(findings):
    assert [finding for finding in findings.values() if finding.problem] == []


@pytest.mark.parametrize(
    "name",
    [
        "tower, float32",
        "connector, float32",
        "prefill, float32",
        "head, float32",
        "image, prompt and a step, float32",
        "activations, float32",
        "prefill in chunks",
        "step, 1,100 tokens in the cache",
        "16 tokens, 4,200 tokens in the cache",
        *[f"batch of {rows}, left-padded" for rows in (2, 3, 5, 8)],
        "rotating cache",
        "8-bit cache",
        "4-bit cache",
        "embedding, 4-bit weights",
        "step, 8-bit weights",
        "5 tokens, 4-bit weights",
        "the same twice",
        "on another thread",
    ],
)
def test_everything_that_an_answer_may_need_is_compared(findings, name):
    assert name in findings


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_16_bits_are_well_within_their_tolerances(dtype):
    sample = Sample(narrow_config(), dtype)
    for run in (sample.tower, sample.connector, sample.hidden, sample.head, sample.answer):
        assert sample.error(run) < 0.5 * equality.TOLERANCES[dtype]


@pytest.mark.skipif(ON_GPU, reason="replaces what the CPU computes")
def test_a_wrong_kernel_is_noticed(monkeypatch):
    monkeypatch.setattr(ops.cpu, "attention", lambda queries, *_: queries)
    found = {
        finding.name: finding
        for finding in equality._check_stages(narrow_config(), mx.float32, "float32")
    }
    assert "set mx.set_default_device(mx.cpu)" in found["tower, float32"].problem
    assert found["prefill, float32"].problem is None


@pytest.mark.parametrize("wrong", ["no mask", "no positions", "heads mixed up"])
def test_whatever_a_kernel_leaves_out_is_beyond_all_tolerances(monkeypatch, sample, wrong):
    expected = sample.answer(sample.model)
    mx.eval(expected)
    right = _mlx_lm.scaled_dot_product_attention
    if wrong == "no positions":
        monkeypatch.setattr(layers.Attention, "__call__", without_positions)
    elif wrong == "no mask":
        monkeypatch.setattr(
            _mlx_lm, "scaled_dot_product_attention",
            lambda *arrays, **options: right(*arrays, **{**options, "mask": None}),
        )  # fmt: skip
    else:
        monkeypatch.setattr(
            _mlx_lm, "scaled_dot_product_attention",
            lambda queries, *others, **options: right(queries[:, ::-1], *others, **options),
        )  # fmt: skip
    error = row_error(sample.answer(sample.model), expected)
    assert error > 2 * max(equality.TOLERANCES.values())


def without_positions(self, x, mask, cache, offset, *, whole=layers.Attention.__call__):
    return whole(self, x, mask, cache, 0)


def test_rounding_to_11_bits_is_within_the_tolerance(monkeypatch, sample):
    """As GPUs may multiply float32."""
    expected = sample.answer(sample.model)
    mx.eval(expected)
    right = mx.fast.scaled_dot_product_attention

    def linear(self, x):
        product = rounded(x) @ rounded(self.weight).T
        return product + self.bias if "bias" in self else product

    monkeypatch.setattr(ops, "uses_cpu_arithmetic", lambda _: False)
    monkeypatch.setattr(nn.Linear, "__call__", linear)
    monkeypatch.setattr(
        mx.fast, "scaled_dot_product_attention",
        lambda *arrays, **options: right(*map(rounded, arrays), **options),
    )  # fmt: skip
    error = row_error(sample.answer(sample.model), expected)
    # The tolerance leaves room for other orders of sums, but not for much more.
    assert 0.0005 < error < 0.5 * equality.TOLERANCES[mx.float32]


def rounded(x):
    """Keep 10 bits behind the leading one, rounding up from the middle."""
    bits = (x.view(mx.uint32) + (1 << 12)) & mx.array(0xFFFFE000, mx.uint32)
    return bits.view(mx.float32)


def test_one_wrong_row_among_many_shows():
    right = np.random.default_rng(0).standard_normal((2000, 8)).astype(np.float32)
    wrong = right.copy()
    wrong[1234] *= -1
    assert row_error(mx.array(right), mx.array(right)) == 0
    assert row_error(mx.array(wrong), mx.array(right)) == pytest.approx(2)
    wrong[0, 0] = np.nan
    assert row_error(mx.array(wrong), mx.array(right)) == float("inf")


def test_an_exception_of_mlx_is_a_finding_and_the_next_check_runs(monkeypatch):
    def broken(self, model):
        raise RuntimeError("[metal::Device] Unable to load kernel steel_attention")

    monkeypatch.setattr(Sample, "connector", broken)
    found = list(equality._check_stages(narrow_config(), mx.float32, "float32"))
    assert found[1].name == "connector, float32"
    assert "Unable to load kernel steel_attention" in found[1].problem
    assert found[2].problem is None


def test_running_out_of_memory_is_said_as_such(monkeypatch, sample):
    def greedy(model):
        raise RuntimeError("[metal::malloc] Attempting to allocate 99 bytes")

    (finding,) = equality._compared("greedy", sample, greedy)
    assert "the device ran out of memory" in finding.problem


def test_activations_of_another_type_are_named(monkeypatch):
    whole = Sample.tower
    monkeypatch.setattr(Sample, "tower", lambda self, model: whole(self, model).astype(mx.float32))
    found = {
        finding.name: finding
        for finding in equality._check_stages(narrow_config(), mx.float16, "float16")
    }
    assert found["activations, float16"].value == "of another type: tower"
    assert found["activations, float16"].problem


def test_results_that_change_are_noticed(monkeypatch, sample):
    numbers = iter(range(10))
    whole = Sample.answer
    monkeypatch.setattr(Sample, "answer", lambda self, model: whole(self, model) + next(numbers))
    found = {finding.name: finding for finding in equality._check_repeats(sample)}
    assert found["the same twice"].problem
    assert found["on another thread"].problem


def test_the_reference_compiles_nothing(monkeypatch):
    calls = []
    monkeypatch.setattr(mx, "disable_compile", lambda: calls.append("off"))
    monkeypatch.setattr(mx, "enable_compile", lambda: calls.append("on"))
    with pytest.raises(ZeroDivisionError), comparison.reference_arithmetic():
        calls.append(1 / 0)
    assert calls == ["off", "on"]


def test_a_missing_fused_kernel_is_told_in_plain_words(monkeypatch):
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(kernels, "fused_error", lambda *_: "no kernel")
    findings = list(kernels.check_kernels(mx.bfloat16))
    assert len(findings) == 3
    assert all(finding.problem and "pip install" in finding.problem for finding in findings)


@pytest.mark.skipif(ON_GPU, reason="a GPU has them")
def test_a_device_without_fused_kernels_is_found_out():
    assert kernels.fused_error(kernels.CASES[0], mx.float32)
