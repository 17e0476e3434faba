"""The types that tensors are stored and computed in, each with all its names."""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import RequestError
from .json_file import quoted


@dataclass(frozen=True)
class DType:
    """One type of numbers."""

    name: str
    """As options and config.json spell it."""
    code: str
    """As safetensors spells it."""
    mlx: mx.Dtype
    numpy: np.dtype[Any]
    """What its bits are read as: numpy has no bfloat16, which is read as 16-bit integers."""

    @property
    def nbytes(self) -> int:
        """Bytes of one number."""
        return self.numpy.itemsize

    @property
    def is_floating(self) -> bool:
        """Whether it holds weights; the others hold packed weights and their 8-bit scales."""
        return bool(mx.issubdtype(self.mlx, mx.floating))


ALL_DTYPES = (
    DType("float32", "F32", mx.float32, np.dtype(np.float32)),
    DType("float16", "F16", mx.float16, np.dtype(np.float16)),
    DType("bfloat16", "BF16", mx.bfloat16, np.dtype(np.uint16)),
    DType("uint32", "U32", mx.uint32, np.dtype(np.uint32)),
    DType("uint8", "U8", mx.uint8, np.dtype(np.uint8)),
)
BY_CODE = {dtype.code: dtype for dtype in ALL_DTYPES}
BY_MLX = {dtype.mlx: dtype for dtype in ALL_DTYPES}
FLOAT_DTYPES = {dtype.name: dtype for dtype in ALL_DTYPES if dtype.is_floating}
"""What a model can be computed in, by name."""


def as_dtype(dtype: str | mx.Dtype | None) -> mx.Dtype | None:
    """Return the MLX type of a name that an option has; None stays None.

    Raises:
        RequestError: it is none that models are computed in.
    """
    if dtype is None:
        return None
    for name, known in FLOAT_DTYPES.items():
        if dtype in (name, known.mlx):
            return known.mlx
    raise RequestError(f"dtype {quoted(dtype)} is not one of {', '.join(FLOAT_DTYPES)}")
