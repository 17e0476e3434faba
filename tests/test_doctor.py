"""The check-up runs anywhere, and notices what it is there for."""

import mlx.core as mx
import pytest

from jvlm_mlx.command_line.main import main
from jvlm_mlx.doctor import check_all, equality, kernels, machine
from jvlm_mlx.model import cpu


def test_it_reports_without_problems_on_a_sound_machine(capsys, monkeypatch):
    monkeypatch.setattr(machine, "LEAST_MEMORY", 0)
    assert main(["doctor", "--no-speed"]) == 0
    out = capsys.readouterr().out
    for word in ("chip", "memory", "MLX", "head size 72", "head size 128", "all is well"):
        assert word in out


def test_the_speed_test_names_what_is_computed(monkeypatch):
    from jvlm_mlx.doctor import speed

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
    monkeypatch.setattr(cpu, "attention", lambda queries, *_: queries)
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


def test_an_old_mlx_is_a_problem(monkeypatch):
    monkeypatch.setattr(machine, "version", lambda _: "0.31.2")
    problems = [finding.problem for finding in check_all(speed=False) if finding.problem]
    assert any("pip install -U mlx" in problem for problem in problems)


def test_rosetta_is_named(monkeypatch):
    monkeypatch.setattr(machine.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    assert "Rosetta" in str(next(iter(machine.check_machine())).problem)
