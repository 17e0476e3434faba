"""Rates, stages beside their predictions, and who is suspected; no clock decides a test."""

import time

import mlx.core as mx
import pytest

from jvlm_mlx.diagnostics import checks, measurements, rates
from jvlm_mlx.diagnostics.checks import CheckUp, computed
from jvlm_mlx.diagnostics.machine import System
from jvlm_mlx.diagnostics.measurements import StageRuns, stage_finding
from jvlm_mlx.diagnostics.rates import CHAINED, Effort, chained, fastest, weight_format
from jvlm_mlx.diagnostics.report import Finding
from jvlm_mlx.diagnostics.roofline import BFLOAT16, Kernel, Rates, Stage
from jvlm_mlx.diagnostics.sample_model import narrow_config, released_config

FAST = Rates(flops=1e15, bandwidth=1e13, launch=0.0)
TINY = Effort(seconds=1e-3, distinct_layers=1, vocabulary=512, chain_seconds=0.0)


@pytest.fixture
def narrow(monkeypatch):
    """Stages at a width that takes no time."""
    for module in (measurements, rates, checks):
        monkeypatch.setattr(module, "released_config", narrow_config, raising=False)
    monkeypatch.setattr(rates, "_ROWS", 512)
    monkeypatch.setattr(measurements, "TOWER_SIZES", ((2, 3), (1, 2)))
    monkeypatch.setattr(measurements, "PREFILL_SIZES", ((40, 3), (8, 1)))
    monkeypatch.setattr(measurements, "DECODE_DEPTHS", (3, 1))


@pytest.mark.parametrize("bits", [None, 4])
def test_every_stage_is_predicted_and_measured(narrow, bits):
    effort = Effort(seconds=30.0, distinct_layers=2, vocabulary=512, chain_seconds=0.0)
    runs = StageRuns(weight_format(mx.float32, bits), mx.float32, FAST, effort, lambda _: "load")
    found = {finding.name[6:].partition(",")[0]: finding for finding in runs.check()}
    names = {"head", "decode"} if bits else {"tower", "connector", "prefill", "head", "decode"}
    assert {name.removesuffix(" step") for name in found} == names
    assert all(finding.problem is None for finding in found.values())
    decode = found["decode step"].data
    assert decode["size"] == "3 layers"
    # 15 kernels a layer, and 4 or 7 around them.
    assert decode["kernels"] == 3 * 15 + (7 if bits else 4)
    assert decode["measured_seconds"] > 0
    assert decode["bytes"] > 0
    if not bits:
        assert found["tower"].data["size"] == "2 tiles, 3 layers"
        assert found["prefill"].data["size"] == "40 tokens, 3 layers"


def test_less_is_run_where_the_whole_would_take_too_long(narrow):
    slow = Rates(flops=1e11, bandwidth=1e11, launch=0.0)
    effort = Effort(seconds=1e-3, distinct_layers=1, vocabulary=512, chain_seconds=0.0)
    runs = StageRuns(weight_format(mx.float32), mx.float32, slow, effort, lambda _: "load")
    found = {finding.name: finding for finding in runs.check()}
    assert found["time: prefill, float32"].data["size"] == "8 tokens, 1 layer"


def test_what_takes_far_too_long_is_not_measured_and_no_problem(narrow):
    hopeless = Rates(flops=1.0, bandwidth=1.0, launch=0.0)
    runs = StageRuns(weight_format(mx.float32), mx.float32, hopeless, TINY, lambda _: "load")
    found = {finding.name: finding for finding in runs.check()}
    assert found["time: tower, float32"].value.startswith("not measured: ")
    assert found["time: tower, float32"].verdict == "ok"


def test_a_stage_that_fails_is_a_finding(narrow, monkeypatch):
    def broken(self, model):
        raise RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory")
        yield

    monkeypatch.setattr(StageRuns, "prefill", broken)
    broken.__name__ = "prefill"
    runs = StageRuns(weight_format(mx.float32), mx.float32, FAST, TINY, lambda _: "load")
    found = {finding.name: finding for finding in runs.check()}
    assert "the device ran out of memory" in found["time: prefill, float32"].problem
    assert "time: decode step, float32" in found


@pytest.mark.parametrize(("seconds", "suspect"), [(1.3, None), (1.4, "heat")])
def test_a_suspect_is_named_below_three_quarters(seconds, suspect):
    stages = [Stage("tower", (Kernel("product", 100, 0, 0),))]
    rates = Rates(flops=100.0, bandwidth=1.0, launch=0.0)
    finding = stage_finding(
        "tower", "all", stages, rates, seconds, limits=(1, 1), suspect=lambda: "heat"
    )
    assert finding.suspect == suspect
    assert finding.data["fraction"] == pytest.approx(1 / seconds)
    assert finding.value.startswith("predicted 1 s, measured ")


def test_chains_are_20_to_50_long_and_each_step_waits_for_the_last(monkeypatch):
    lengths = []

    def step(x, index):
        lengths.append(index)
        return x + 1

    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    for seconds, expected in ((0.0, CHAINED[0]), (1000.0, CHAINED[1])):
        lengths.clear()
        chained(step, mx.zeros(()), seconds)
        assert max(lengths) + 1 == expected
    assert CHAINED == (20, 50)


def test_the_fastest_run_counts_and_the_first_does_not(monkeypatch):
    clock = iter([0.0, 0.1, 1.0, 1.5, 2.0, 2.2, 3.0, 3.3])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert fastest(lambda: None) == pytest.approx(0.2)


def test_what_takes_long_is_run_once(monkeypatch):
    clock = iter([0.0, 100.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert fastest(lambda: None) == 100.0


@pytest.mark.parametrize("bits", [None, 4])
def test_rates_are_of_the_bytes_and_products_that_were_made(narrow, monkeypatch, bits):
    monkeypatch.setattr(rates, "chained", lambda *_: 1.0)
    form = weight_format(mx.float32, bits)
    found = rates.measure_rates(form, mx.float32, TINY)
    width = narrow_config().decoder.hidden_size
    assert found.flops == 2 * 256 * width**2
    assert found.bandwidth == pytest.approx(512 * width * form.weight_bytes)


def test_what_rates_allow_is_called_computed():
    found = {finding.name: finding for finding in computed(BFLOAT16, FAST)}
    assert found["first token of 13 tiles, bfloat16"].value.endswith("(computed)")
    assert found["tokens a second, bfloat16"].value.startswith("at most ")
    (packed,) = computed(weight_format(mx.bfloat16, 4), FAST)
    # 1.18 GB of weights and KV cache at 10 TB/s.
    assert packed.data["computed_seconds"] == pytest.approx(118e-6, rel=0.05)
    assert released_config().decoder.num_hidden_layers == 28


@pytest.mark.parametrize(("device", "slow"), [(mx.cpu, True), (mx.gpu, False)])
def test_a_slow_blas_is_a_problem_on_a_cpu(monkeypatch, device, slow):
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(device))
    found = {
        finding.name: finding
        for finding in CheckUp(System())._rate_findings(
            BFLOAT16, Rates(flops=2e9, bandwidth=2e8, launch=2e-6)
        )
    }
    assert found["matrix products, bfloat16"].value == "2 GFLOP/s"
    assert ("OpenBLAS" in str(found["matrix products, bfloat16"].problem)) is slow
    assert found["reading weights, bfloat16"].value == "0.2 GB/s"


def test_rates_far_below_the_chips_have_a_suspect(monkeypatch):
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    check_up = CheckUp(System(brand="Apple M4 Max", gpu_cores=40))
    check_up.findings.append(Finding("thermal state", "hot", suspect="let it cool down"))
    good = Rates(flops=13e12, bandwidth=450e9, launch=2e-6)
    poor = Rates(flops=6e12, bandwidth=450e9, launch=2e-6)
    assert {one.verdict for one in check_up._rate_findings(BFLOAT16, good)} == {"ok"}
    found = {one.name: one for one in check_up._rate_findings(BFLOAT16, poor)}
    assert found["matrix products, bfloat16"].suspect == "let it cool down"
    assert "44% of what M4 Max should reach" in found["matrix products, bfloat16"].value
    assert found["reading weights, bfloat16"].suspect is None


@pytest.mark.parametrize(
    ("finding", "says"),
    [
        (Finding("attention", "", data={"stage": "tower", "fused": False}), "not fused"),
        (Finding("activations, bfloat16", "of another type: tower", "wrong"), "of another type"),
        (Finding("swap in use", "9 GB", suspect="the system swaps"), "the system swaps"),
        (Finding("power mode", "low power", suspect="Low Power Mode"), "Low Power Mode"),
        (Finding("chip", "Apple M4"), "nothing known explains it"),
    ],
)
def test_who_is_suspected(monkeypatch, finding, says):
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    assert says in CheckUp(System(), findings=[finding]).suspect("tower")


def test_a_cpu_has_an_explanation_of_its_own(monkeypatch):
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    check_up = CheckUp(System())
    assert "on one core" in check_up.suspect("tower")
    assert "nothing known" in check_up.suspect("head")
