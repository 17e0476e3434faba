"""The check-up runs anywhere, and notices what it is there for."""

import mlx.core as mx
import mlx.nn as nn
import pytest

from jvlm_mlx import _mlx_lm
from jvlm_mlx.cli.main import main
from jvlm_mlx.diagnostics import equality, kernels, machine, speed
from jvlm_mlx.diagnostics.checks import check_all
from jvlm_mlx.model import layers, ops


def test_it_reports_without_problems_on_a_sound_machine(capsys, monkeypatch):
    monkeypatch.setattr(machine, "MIN_MEMORY", 0)
    assert main(["doctor", "--no-speed"]) == 0
    out = capsys.readouterr().out
    for word in ("chip", "memory", "MLX", "head size 72", "head size 128", "all is well"):
        assert word in out


def test_the_speed_test_names_what_is_computed(monkeypatch):
    monkeypatch.setattr(speed, "_SECONDS", 0.0)
    monkeypatch.setattr(speed, "_SIDE", 64)
    monkeypatch.setattr(speed, "_ROWS", 64)
    found = {finding.name: finding.value for finding in speed.check_speed(mx.float32)}
    assert "GFLOP/s" in found["matrix products"]
    assert "computed" in found["tokens a second, 4-bit"]


def test_a_wrong_kernel_is_noticed(monkeypatch, capsys):
    if mx.default_device().type == mx.gpu:
        pytest.skip("replaces what the CPU computes")
    assert equality.difference(mx.float32) < 1e-4  # float32 rounding of logits near 1
    monkeypatch.setattr(ops.cpu, "attention", lambda queries, *_: queries)
    findings = list(equality.check_equality())
    assert any(finding.problem and "wrong" in finding.problem for finding in findings)


def test_a_missing_fused_kernel_is_told_in_plain_words(monkeypatch):
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(kernels, "fused_error", lambda *_: "no kernel")
    findings = list(kernels.check_kernels(mx.bfloat16))
    assert len(findings) == 3
    assert all(finding.problem and "pip install" in finding.problem for finding in findings)


def test_a_device_without_fused_kernels_is_found_out():
    if mx.default_device().type == mx.gpu:
        pytest.skip("a GPU has them")
    assert kernels.fused_error(kernels.CASES[0], mx.float32)


@pytest.mark.parametrize("wrong", ["no mask", "no positions", "heads mixed up"])
def test_whatever_a_kernel_leaves_out_is_beyond_all_tolerances(monkeypatch, wrong):
    expected = equality.logits(equality.small_model(mx.float32))
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
    found = equality.logits(equality.small_model(mx.float32))
    assert mx.abs(found - expected).max().item() > 2 * max(equality.TOLERANCES.values())


def without_positions(self, x, mask, cache, offset, *, whole=layers.Attention.__call__):
    return whole(self, x, mask, cache, 0)


def test_rounding_to_11_bits_is_within_the_tolerance(monkeypatch):
    """As GPUs may multiply float32."""
    expected = equality.logits(equality.small_model(mx.float32))
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
    found = equality.logits(equality.small_model(mx.float32))
    largest = mx.abs(found - expected).max().item()
    # The tolerance leaves room for other orders of sums, but not for much more.
    assert 0.001 < largest < 0.5 * equality.TOLERANCES[mx.float32]


def rounded(x):
    """Keep 10 bits behind the leading one, rounding up from the middle."""
    bits = (x.view(mx.uint32) + (1 << 12)) & mx.array(0xFFFFE000, mx.uint32)
    return bits.view(mx.float32)


def test_a_gpu_is_asked_for_fused_kernels_and_both_types(monkeypatch):
    """The branches of a Mac, with stand-ins for what only its GPU can say."""
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx, "device_info", lambda: APPLE)
    asked = []

    def fused_error(case, dtype):
        asked.append((case.head_dim, dtype))

    monkeypatch.setattr(kernels, "fused_error", fused_error)
    monkeypatch.setattr(equality, "difference", lambda dtype: equality.TOLERANCES[dtype])
    monkeypatch.setattr(machine, "MIN_MEMORY", 0)
    monkeypatch.setattr(machine.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(machine.platform, "machine", lambda: "arm64")
    findings = {finding.name: finding for finding in check_all(speed=False)}
    assert [finding.problem for finding in findings.values() if finding.problem] == []
    assert findings["chip"].value.startswith("Apple M4, ")
    assert findings["memory for the GPU"].value == "11.4 GB"
    assert findings["device"].value == "GPU"
    assert asked == [(72, mx.bfloat16), (128, mx.bfloat16), (128, mx.bfloat16)]
    assert findings["attention, vision tower, head size 72"].value == "fused"
    assert "2e-02 allowed" in findings["small model, float32"].value
    assert "2e-01 allowed" in findings["small model, bfloat16"].value


APPLE = {"device_name": "Apple M4", "max_recommended_working_set_size": 11_400_000_000}


def test_wrong_results_of_a_gpu_are_named_by_type(monkeypatch):
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    wrong = {mx.float32: 0.001, mx.bfloat16: 1.5}
    monkeypatch.setattr(equality, "difference", wrong.get)
    float32, bfloat16 = equality.check_equality()
    assert float32.problem is None
    assert "set mx.set_default_device(mx.cpu)" in bfloat16.problem


def test_a_mac_without_its_gpu_is_a_problem(monkeypatch):
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    monkeypatch.setattr(machine.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(machine.platform, "machine", lambda: "arm64")
    chip = next(machine.check_machine())
    assert "does not use the GPU of this Mac" in chip.problem


def test_little_memory_is_a_problem(monkeypatch, capsys):
    monkeypatch.setattr(machine, "MIN_MEMORY", 10**15)
    assert main(["doctor", "--no-speed"]) == 1
    out = capsys.readouterr().out
    assert "  problem: this is less than 8 GB: only a 4-bit model" in out
    assert "1 problem found" in out


@pytest.mark.parametrize(("device", "slow"), [(mx.cpu, True), (mx.gpu, False)])
def test_a_slow_blas_is_a_problem_on_a_cpu(monkeypatch, device, slow):
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(device))
    # A second for 2 x 1024^3 operations, or for 50 million weights of 4 bytes.
    monkeypatch.setattr(speed, "_fastest", lambda _: 1.0)
    findings = {finding.name: finding for finding in speed.check_speed(mx.float32)}
    assert findings["matrix products"].value == "2 GFLOP/s in float32"
    assert ("OpenBLAS" in str(findings["matrix products"].problem)) is slow
    assert findings["reading weights"].value == "0.2 GB/s"
    # 201 MB a second, and 1.721 G weights of 4.5 bits.
    assert findings["tokens a second, 4-bit"].value == "at most 0 (computed)"


def test_an_old_mlx_is_a_problem(monkeypatch):
    monkeypatch.setattr(machine, "version", lambda _: "0.31.2")
    problems = [finding.problem for finding in check_all(speed=False) if finding.problem]
    assert any("pip install -U mlx" in problem for problem in problems)


def test_rosetta_is_named(monkeypatch):
    monkeypatch.setattr(machine.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    assert "Rosetta" in str(next(iter(machine.check_machine())).problem)
