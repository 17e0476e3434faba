"""Which kernels are looked for, and that a library without one is found out."""

import re
import sys
import zipfile

import pytest

from benchmarks import metal_kernels
from benchmarks.harness.models import released_model_config

NEEDS = {need.purpose: need for need in metal_kernels.needs(released_model_config())}


def example(pattern):
    """Return a name that fits a pattern."""
    name = re.sub(r"\([^)]*\)\?", "", pattern).replace(".*", "_pr_0")
    return re.sub(r"\\d\+?", "4", name)


def write_wheel(folder, names, name="mlx_metal-1.0-py3-none-macosx_26_0_arm64.whl"):
    """Write a wheel whose library of kernels has these names, as Metal stores them."""
    entries = b"".join(
        b"NAME" + (len(name) + 1).to_bytes(2, "little") + name.encode() + b"\0TYPE"
        for name in names
    )
    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.writestr(metal_kernels.LIBRARY, b"MTLB" + bytes(range(256)) + entries)
    return folder / name


@pytest.fixture
def complete():
    return {example(pattern) for need in NEEDS.values() for pattern in need.patterns}


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["metal_kernels", *map(str, arguments)])
    return metal_kernels.main()


def test_names_are_read_from_the_library(tmp_path):
    names = {"rmsbfloat16", "affine_qmv_fast_float_gs_64_b_4_batch_0"}
    assert names <= metal_kernels.kernel_names(write_wheel(tmp_path, names))


def test_a_complete_wheel_passes(tmp_path, complete, monkeypatch, capsys):
    assert run(monkeypatch, "--wheel", write_wheel(tmp_path, complete)) == 0
    assert "missing in" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("purpose", "name"),
    [
        ("attention, tower, head size 72", "steel_attention_bfloat16_bq4_bk4_bd72_wm4_wn4_mask"),
        ("attention, decode, head size 128", "sdpa_vector_2pass_1_float16_t_128_128"),
        ("4-bit weights, groups of 32, 64, 128", "affine_qmv_fast_bfloat16_t_gs_64_b_4"),
        ("norms", "layer_normfloat16"),
        ("neural accelerators, heads padded to 96", "steel_attention_float16_bq64"),
    ],
)
def test_a_kernel_that_is_missing_is_named(tmp_path, complete, monkeypatch, capsys, purpose, name):
    lacking = {one for one in complete if one.startswith(name)}
    assert lacking
    assert run(monkeypatch, "--wheel", write_wheel(tmp_path, complete - lacking)) == 1
    assert f"{purpose}: " in capsys.readouterr().out.partition("missing in")[2]


def test_wheels_for_older_systems_need_no_kernels_for_neural_accelerators(
    tmp_path, complete, monkeypatch
):
    older = {name for name in complete if "nax" not in name and "bq64_bk32_bd96" not in name}
    name = "mlx_metal-1.0-py3-none-macosx_14_0_arm64.whl"
    assert run(monkeypatch, "--wheel", write_wheel(tmp_path, older, name)) == 0


def test_what_is_no_wheel_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "no.whl").write_bytes(b"nothing")
    with pytest.raises(SystemExit, match="has no mlx/lib/mlx"):
        run(monkeypatch, "--wheel", tmp_path / "no.whl")


def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
    failed = type("Finished", (), {"returncode": 1, "stderr": "a\nERROR: No matching distribution"})
    monkeypatch.setattr(metal_kernels.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(SystemExit, match="cannot be downloaded: ERROR: No matching"):
        metal_kernels.download("9.9", "macosx_14_0_arm64", tmp_path)


def test_what_is_looked_for_follows_the_config():
    assert "attention, tower, head size 72" in NEEDS
    assert len(NEEDS["4-bit weights, groups of 32, 64, 128"].patterns) == 3 * 3 * 5
