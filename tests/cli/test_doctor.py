"""`jvlm doctor`: what it prints, its exit code, and what it refuses."""

import json

import mlx.core as mx
import pytest

import jvlm_mlx.doctor
from jvlm_mlx.cli.main import main
from jvlm_mlx.diagnostics import checks, comparison, equality, kernels, machine
from jvlm_mlx.diagnostics.machine import System
from jvlm_mlx.diagnostics.rates import FULL, QUICK
from jvlm_mlx.diagnostics.report import Finding
from jvlm_mlx.diagnostics.roofline import Rates


@pytest.fixture(autouse=True)
def sound(monkeypatch):
    """A machine without anything to complain about, whatever this one is and does meanwhile."""
    monkeypatch.setattr(machine, "MIN_MEMORY", 0)
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(jvlm_mlx.doctor, "read_system", System)


@pytest.fixture
def few(monkeypatch):
    """Only one comparison of results, which takes no time."""

    def check_equality(config, dtypes, main):
        yield Finding("tower, float32", f"relative error 0, {len(dtypes)} types")

    monkeypatch.setattr(checks, "check_equality", check_equality)


def test_it_reports_without_problems_on_a_sound_machine(capsys, few):
    """What is compared is tested with the comparison, and the whole with the README."""
    assert main(["doctor", "--no-speed"]) == 0
    out = capsys.readouterr().out
    for text in ("chip", "memory", "MLX", "head size 72", "head size 128", "3 types"):
        assert text in out
    assert out.endswith("\nall is well\n")


def test_problems_are_below_their_findings_and_counted(capsys, monkeypatch, few):
    monkeypatch.setattr(machine, "MIN_MEMORY", 10**15)
    assert main(["doctor", "--no-speed"]) == 1
    out = capsys.readouterr().out
    assert "  problem: this is less than 8 GB: only a 4-bit model" in out
    assert "1 problem found" in out


def test_a_suspect_is_no_problem(capsys, monkeypatch, few):
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (99.0, 99.0, 99.0))
    assert main(["doctor", "--no-speed"]) == 0
    out = capsys.readouterr().out
    assert "  suspect: other programs keep the processor busy" in out
    assert "1 finding slower than possible" in out


def test_a_check_that_fails_is_a_finding_and_the_others_run(capsys, monkeypatch):
    def broken(config, dtypes, main):
        yield Finding("tower", "fine")
        raise RuntimeError("[metal::Device] Unable to build metal library from source\nmore")

    monkeypatch.setattr(checks, "check_equality", broken)
    assert main(["doctor", "--no-speed"]) == 1
    captured = capsys.readouterr()
    assert "ended with an error: [metal::Device] Unable to build metal library" in captured.out
    assert "Traceback" not in captured.out + captured.err


def test_json_is_one_line_with_everything(capsys, few):
    assert main(["doctor", "--no-speed", "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    report = json.loads(out)
    assert report["verdict"] == "ok"
    found = {finding["name"]: finding for finding in report["findings"]}
    assert found["tower, float32"] == {
        "name": "tower, float32", "value": "relative error 0, 3 types", "verdict": "ok",
    }  # fmt: skip
    assert "MLX" in found


@pytest.mark.parametrize("terminal", [True, False])
def test_whoever_waits_for_the_line_sees_findings_come(capsys, monkeypatch, few, terminal):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    assert main(["doctor", "--no-speed", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    assert ("tower, float32" in captured.err) is terminal


@pytest.mark.parametrize(
    ("device", "flags", "full"),
    [
        (mx.cpu, [], False),
        (mx.cpu, ["--full"], True),
        (mx.gpu, [], True),
        (mx.gpu, ["--quick"], False),
    ],
)
def test_how_much_is_examined(monkeypatch, device, flags, full):
    seen = []

    class Recorder(checks.CheckUp):
        def run(self):
            seen.append(self.full)
            return iter(())

    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(device))
    monkeypatch.setattr(jvlm_mlx.doctor, "CheckUp", Recorder)
    assert main(["doctor", *flags]) == 0
    assert seen == [full]


def test_quick_and_full_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        main(["doctor", "--quick", "--full"])
    assert capsys.readouterr().err.count("\n") == 1


def test_a_gpu_is_asked_for_everything(monkeypatch, capsys):
    """The branches of a Mac, with stand-ins for what only its GPU can say."""
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(
        mx, "device_info",
        lambda: {"architecture": "applegpu_g16s", "max_recommended_working_set_size": 11 * 10**9},
    )  # fmt: skip
    asked = []
    monkeypatch.setattr(kernels, "fused_error", lambda case, dtype: asked.append((case, dtype)))
    monkeypatch.setattr(checks, "check_equality", lambda *given: asked.append(given) or ())
    monkeypatch.setattr(checks, "check_preprocessing", lambda _: ())
    efforts = []

    def measure_rates(form, dtype, effort):
        efforts.append((form.name, effort))
        return Rates(flops=13e12, bandwidth=450e9, launch=2.4e-6)

    monkeypatch.setattr(checks, "measure_rates", measure_rates)
    monkeypatch.setattr(checks.StageRuns, "check", lambda _: iter(()))
    assert main(["doctor"]) == 0
    cases, (config, dtypes, _) = asked[:3], asked[3]
    assert [(case.head_dim, dtype) for case, dtype in cases] == [
        (72, mx.bfloat16), (128, mx.bfloat16), (128, mx.bfloat16),
    ]  # fmt: skip
    assert config.decoder.hidden_size == 2048
    assert set(dtypes) == {mx.float32, mx.float16, mx.bfloat16}
    assert efforts == [("bfloat16", FULL), ("8-bit", FULL), ("4-bit", FULL)]
    assert "fused" in capsys.readouterr().out
    assert QUICK.seconds < FULL.seconds


def test_wrong_results_of_a_gpu_are_named_by_type(monkeypatch):
    wrong = {mx.float32: 0.001, mx.float16: 0.001, mx.bfloat16: 1.5}
    monkeypatch.setattr(comparison.Sample, "error", lambda self, *_: wrong[self.dtype])
    found = {
        finding.name: finding
        for finding in equality.check_equality(
            checks.narrow_config(), [mx.float32, mx.bfloat16], mx.float32
        )
    }
    assert found["tower, float32"].problem is None
    assert "set mx.set_default_device(mx.cpu)" in found["tower, bfloat16"].problem


def test_a_capture_needs_metal(capsys, tmp_path):
    if mx.metal.is_available():
        pytest.skip("there is Metal")
    assert main(["doctor", "--capture", str(tmp_path / "a.gputrace")]) == 1
    assert "needs a Mac" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "enabled", "says"),
    [
        ("trace.bin", "1", "give a new name that ends with .gputrace"),
        ("there.gputrace", "1", "give a new name that ends with .gputrace"),
        ("new.gputrace", "0", "MTL_CAPTURE_ENABLED=1 jvlm doctor --capture"),
    ],
)
def test_what_a_capture_refuses(capsys, tmp_path, monkeypatch, name, enabled, says):
    (tmp_path / "there.gputrace").mkdir()
    monkeypatch.setenv("MTL_CAPTURE_ENABLED", enabled)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    assert main(["doctor", "--capture", str(tmp_path / name)]) == 1
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("fails", [False, True])
def test_a_capture_records_a_run_and_always_stops(capsys, tmp_path, monkeypatch, fails):
    events = []

    class NarrowSample(comparison.Sample):
        def __init__(self, *_):
            super().__init__(checks.narrow_config(), mx.float32)

        def answer(self, model):
            events.append("run")
            return super().answer(model)

    def start(path):
        events.append(path)
        if fails:
            raise RuntimeError("[metal::start_capture] Failed to start\nmore")

    monkeypatch.setenv("MTL_CAPTURE_ENABLED", "1")
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx.metal, "start_capture", start)
    monkeypatch.setattr(mx.metal, "stop_capture", lambda: events.append("stop"))
    monkeypatch.setattr(comparison, "Sample", NarrowSample)
    file = str(tmp_path / "new.gputrace")
    assert main(["doctor", "--capture", file]) == int(fails)
    assert events == (["run", file] if fails else ["run", file, "run", "stop"])
    if fails:
        assert "Metal cannot record" in capsys.readouterr().err
