"""Looks through all weights for values that are no numbers, before anything is written."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ..checkpoint.row_reader import row_blocks
from ..checkpoint.weights import stored_bytes
from ..errors import CheckpointError
from ..progress import Progress, ProgressEvent
from .source import Source
from .workers import work_through

"""Called with a stage, bytes done and bytes in all."""

BLOCK_VALUES = 4 * 2**20
_FLOAT16_LIMIT = 65520.0  # from here on, rounding gives infinity
# The bits of the magnitude, and the smallest that are infinite or no number.
_MAGNITUDES: dict[str, tuple[npt.DTypeLike, int, int]] = {
    "F32": (np.uint32, 0x7FFFFFFF, 0x7F800000),
    "F16": (np.uint16, 0x7FFF, 0x7C00),
    "BF16": (np.uint16, 0x7FFF, 0x7F80),
}
# 8-bit scales that are no number, by mode of quantization: the mask to apply, and the value.
_SCALES = {"mxfp4": (0xFF, 0xFF), "mxfp8": (0xFF, 0xFF), "nvfp4": (0x7F, 0x7F)}


def check_values(source: Source, *, float16: bool, progress: Progress | None = None) -> None:
    """Read all tensors that the model needs, and refuse NaN and infinite values.

    Args:
        source: the open checkpoint.
        float16: whether values must also be small enough for float16.
        progress: told how many bytes have been read.

    Raises:
        CheckpointError: with the name and file of the first tensor found.
    """
    scales = {
        source.checkpoint.parts[f"{layer}.scales"][0].name: quantization.mode
        for layer, quantization in source.checkpoint.quantized.items()
    }
    tensors = source.reader.tensors
    used = source.used_tensors()
    total = sum(stored_bytes(tensors[name]) for name in used)
    done = 0

    def blocks() -> Iterator[tuple[str, int, int]]:
        for name, rows in used.items():
            if tensors[name].dtype != "U32":
                for start, stop in row_blocks(tensors[name].shape, BLOCK_VALUES):
                    if start < rows:
                        yield name, start, min(stop, rows)

    def check(block: tuple[str, int, int]) -> int:
        name, start, stop = block
        values = source.reader.read(name, start, stop)
        problem = _problem(values, tensors[name].dtype, scales.get(name, ""), float16)
        if problem:
            raise CheckpointError(f"{tensors[name].file}: {name} {problem}")
        return values.nbytes

    for size in work_through(blocks(), check):
        done += size
        if progress:
            progress(ProgressEvent("checking", done, total, "B"))
    if progress:
        progress(ProgressEvent("checking", total, total, "B"))


def _problem(values: npt.NDArray[np.generic], dtype: str, mode: str, float16: bool) -> str | None:
    """Return what is wrong with values, if anything."""
    if not values.size:
        return None
    broken = "has NaN or infinite values; it was damaged before or when it was saved"
    if dtype == "U8":
        mask, no_number = _SCALES.get(mode, (0, 1))
        return broken if np.any(values.astype(np.uint8) & mask == no_number) else None
    bits, mask, infinite = _MAGNITUDES[dtype]
    # Magnitudes are ordered as their bits are, and integers are compared much faster.
    largest = np.max(values.view(bits) & mask)
    if largest >= infinite:
        return broken
    if float16 and dtype != "F16" and _magnitude(int(largest), dtype) >= _FLOAT16_LIMIT:
        return (
            f"has values up to {_magnitude(int(largest), dtype):.4g}, too large for float16;"
            " use bfloat16 or float32"
        )
    return None


def _magnitude(bits: int, dtype: str) -> float:
    """Return the number that the bits of a bfloat16 or float32 stand for."""
    wide = bits << 16 if dtype == "BF16" else bits
    return float(np.uint32(wide).view(np.float32))
