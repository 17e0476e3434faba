"""The table of types agrees with what MLX and safetensors write."""

import mlx.core as mx
import pytest
from safetensors import safe_open

from jvlm_mlx.config.dtypes import ALL_DTYPES, BY_CODE, BY_MLX, FLOAT_DTYPES


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
