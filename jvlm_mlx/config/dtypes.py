"""The types that tensors are stored and computed in, each with all its names."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
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


MODULES = ("tower", "connector", "decoder")
"""Modules that may compute in types of their own. The head goes with the decoder."""
AUTO = "auto"
EMULATED_BFLOAT16 = ("applegpu_g13", "applegpu_g14")
"""GPUs without bfloat16 instructions, M1 and M2: float16 is faster there."""


@dataclass(frozen=True)
class ModuleDtypes:
    """What each module computes in; None for what is stored."""

    tower: mx.Dtype | None = None
    connector: mx.Dtype | None = None
    decoder: mx.Dtype | None = None

    @classmethod
    def read(
        cls, dtype: "str | mx.Dtype | Mapping[str, Any] | ModuleDtypes | None"
    ) -> "ModuleDtypes":
        """Return the types that an option asks for.

        Args:
            dtype: one type for all modules; or one for some, as a mapping or as text like
                `tower=float16,decoder=bfloat16`; or `auto` for what this machine is fastest in.

        Raises:
            RequestError: a module or a type does not exist.
        """
        if isinstance(dtype, ModuleDtypes):
            return cls(dtype.tower, dtype.connector, dtype.decoder)
        if dtype == AUTO:
            dtype = automatic_dtype()
        if isinstance(dtype, str) and "=" in dtype:
            dtype = dict(part.partition("=")[::2] for part in dtype.split(","))
        if not isinstance(dtype, Mapping):
            return cls(*[as_dtype(dtype)] * len(MODULES))
        found = cls()
        for module, name in dtype.items():
            if module not in MODULES:
                raise RequestError(
                    f"dtype is given for {quoted(module)}; modules are {', '.join(MODULES)}"
                )
            found = replace(found, **{module: as_dtype(name)})
        return found

    def of(self, path: str) -> mx.Dtype | None:
        """Return the type of the module that a parameter of this path belongs to."""
        if path.startswith("vision_tower."):
            return self.tower
        return self.connector if path.startswith("connector.") else self.decoder


def automatic_dtype() -> mx.Dtype:
    """Return the type that this machine is fastest in, at half the memory where it has a GPU."""
    if mx.default_device().type != mx.gpu:
        return mx.float32
    architecture = str(mx.device_info().get("architecture", ""))
    return mx.float16 if architecture.startswith(EMULATED_BFLOAT16) else mx.bfloat16
