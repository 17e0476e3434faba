"""The hint at a slow BLAS: once, on a terminal, on a CPU."""

import mlx.core as mx
import pytest

from jvlm_mlx.cli import arguments
from jvlm_mlx.cli.main import main
from jvlm_mlx.cli.standard_streams import EXIT_OK
from jvlm_mlx.diagnostics import machine


@pytest.fixture(autouse=True)
def new_process(monkeypatch):
    monkeypatch.setattr(machine.platform, "system", lambda: "Linux")
    arguments.hint_at_slow_blas.cache_clear()
    yield
    arguments.hint_at_slow_blas.cache_clear()


@pytest.fixture
def mapped(monkeypatch, tmp_path):
    """Replace the list of this process's libraries; without a tuned BLAS at first."""
    maps = tmp_path / "maps"
    maps.write_text("7f00-7f01 r-xp 0 08:01 1 /usr/lib/libscipy_openblas64_.so\n")
    monkeypatch.setattr(machine, "_MAPPED", maps)
    return maps


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))


def test_a_slow_blas_is_mentioned_once(capsys, mapped, on_cpu):
    for _ in range(2):
        arguments.hint_at_slow_blas()
    err = capsys.readouterr().err
    assert err.startswith("hint: MLX's CPU build uses a slow reference BLAS")
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["libopenblas.so.0", "libmkl_rt.so.2", "libblis.so.4"])
def test_a_tuned_blas_is_not_mentioned(capsys, mapped, on_cpu, name):
    with mapped.open("a") as file:
        file.write(f"7f02-7f03 r-xp 0 08:01 1 /usr/lib/{name}\n")
    arguments.hint_at_slow_blas()
    assert capsys.readouterr().err == ""
    assert machine.blas_name() == name


def test_an_unknown_blas_is_not_mentioned(capsys, mapped, on_cpu):
    mapped.unlink()
    arguments.hint_at_slow_blas()
    assert capsys.readouterr().err == ""


def test_a_gpu_needs_no_hint(capsys, monkeypatch, mapped):
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    arguments.hint_at_slow_blas()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("terminal", "flags"), [(True, []), (True, ["--quiet"]), (False, [])])
def test_the_hint_is_for_whoever_watches(
    capsys, monkeypatch, mapped, golden_folder, terminal, flags
):
    if mx.default_device().type == mx.gpu:
        pytest.skip("computes on a GPU")
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    question = ["-p", "Hi", "--max-tokens", "1", *flags]
    for _ in range(2):
        assert main(["generate", "--model", str(golden_folder / "tiny"), *question]) == EXIT_OK
    shown = capsys.readouterr().err.count("hint:")
    assert shown == (1 if terminal and not flags else 0)
