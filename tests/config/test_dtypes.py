"""The table of types agrees with what MLX and safetensors write."""

import mlx.core as mx
import pytest
from safetensors import safe_open

from jvlm_mlx.config import dtypes
from jvlm_mlx.config.dtypes import ALL_DTYPES, BY_CODE, BY_MLX, FLOAT_DTYPES, ModuleDtypes
from jvlm_mlx.errors import RequestError


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=lambda dtype: dtype.name)
def test_a_type_has_the_names_and_size_that_files_have(dtype, tmp_path):
    array = mx.zeros(3, dtype.mlx)
    mx.save_safetensors(str(tmp_path / "x.safetensors"), {"x": array})
    with safe_open(tmp_path / "x.safetensors", framework="numpy") as opened:
        assert opened.get_slice("x").get_dtype() == dtype.code
    assert str(dtype.mlx) == f"mlx.core.{dtype.name}"
    assert dtype.nbytes == array.itemsize
    assert BY_CODE[dtype.code] is BY_MLX[dtype.mlx] is dtype


def test_models_are_computed_in_floats():
    assert list(FLOAT_DTYPES) == ["float32", "float16", "bfloat16"]


F32, F16, BF16 = mx.float32, mx.float16, mx.bfloat16


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, (None, None, None)),
        ("float16", (F16, F16, F16)),
        (mx.bfloat16, (BF16, BF16, BF16)),
        ("tower=float16", (F16, None, None)),
        ("tower=float16,decoder=bfloat16", (F16, None, BF16)),
        ({"connector": "float32", "decoder": mx.float16}, (None, F32, F16)),
        (ModuleDtypes(tower=F16), (F16, None, None)),
    ],
    ids=str,
)
def test_modules_have_types_of_their_own(given, expected):
    found = ModuleDtypes.read(given)
    assert (found.tower, found.connector, found.decoder) == expected
    paths = "vision_tower.layers.0.mlp.up.weight", "connector.pad_embed", "lm_head.weight"
    assert tuple(found.of(path) for path in paths) == expected
    assert found.of("decoder.norm.weight") == expected[2]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("float8", "dtype 'float8' is not one of float32, float16, bfloat16"),
        ("tower=int8", "dtype 'int8' is not one of"),
        ("eyes=float16", "given for 'eyes'; modules are tower, connector, decoder"),
        (mx.int8, "is not one of"),
    ],
    ids=str,
)
def test_unknown_modules_and_types_are_refused(given, problem):
    with pytest.raises(RequestError, match=problem):
        ModuleDtypes.read(given)


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("applegpu_g13g", F16),  # M1
        ("applegpu_g14s", F16),  # M2 Max
        ("applegpu_g15d", BF16),  # M3 Ultra
        ("applegpu_g17p", BF16),  # M5
        ("", BF16),
    ],
)
def test_the_fastest_type_depends_on_the_chip(monkeypatch, architecture, expected):
    with mx.stream(mx.cpu):
        assert ModuleDtypes.read("auto") == ModuleDtypes(F32, F32, F32)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx, "device_info", lambda: {"architecture": architecture})
    assert dtypes.automatic_dtype() == expected
