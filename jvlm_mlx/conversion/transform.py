"""Turns rows of the source into rows of the output."""

import mlx.core as mx

from ..checkpoint.padding import fit
from ..checkpoint.quantization import pack, unpack
from ..checkpoint.row_reader import as_float
from ..config.dtypes import BY_CODE
from .plan import ParameterPlan
from .source import Source

ERROR_STRIDE = 32
"""The rounding error is measured on each row whose number is a multiple of this."""


def transform_rows(
    source: Source, parameter: ParameterPlan, start: int, stop: int
) -> tuple[dict[str, mx.array], tuple[float, float]]:
    """Return rows of each output tensor of a parameter, evaluated.

    Args:
        source: the open checkpoint.
        parameter: which one, and what becomes of it.
        start: first row of the output.
        stop: row after the last.

    Returns:
        The rows by tensor name; and the sums of squares of rounding errors and of the values
        themselves, on a sample of the rows. Both are 0 where nothing is rounded.
    """
    if parameter.keeps_packed:
        rows = _packed_rows(source, parameter, start, stop)
        mx.eval(rows)
        return rows, (0.0, 0.0)
    exact = _exact_rows(source, parameter, start, stop)
    values = fit(exact.astype(BY_CODE[parameter.dtype].mlx), (stop - start, *parameter.shape[1:]))
    if parameter.quantization is None:
        rows = {parameter.path: values}
    else:
        packed = pack(values, parameter.quantization)
        rows = dict(zip((output.name for output in parameter.outputs), packed, strict=True))
    mx.eval(rows)
    return rows, _rounding(parameter, start, exact, rows)


def _exact_rows(source: Source, parameter: ParameterPlan, start: int, stop: int) -> mx.array:
    """Return rows as the source has them, without padding; perhaps fewer than asked for."""
    stop = min(stop, parameter.source_shape[0])
    # What was quantized has no type of its own: it is unpacked to the one that is asked for.
    dtype = BY_CODE[
        parameter.dtype if parameter.source_quantization else parameter.source_dtype
    ].mlx
    if start >= stop:
        return mx.zeros((0, *parameter.source_shape[1:]), dtype)
    return source.values(parameter.path, start, stop, dtype)


def _packed_rows(
    source: Source, parameter: ParameterPlan, start: int, stop: int
) -> dict[str, mx.array]:
    """Return rows as they are; rows of zeros only stand for zeros in every format."""
    last = min(stop, parameter.source_shape[0])
    rows = {}
    for output in parameter.outputs:
        dtype, shape = BY_CODE[output.dtype].mlx, (stop - start, *output.shape[1:])
        if start < last:
            rows[output.name] = fit(source.stored(output.name, start, last).astype(dtype), shape)
        else:
            rows[output.name] = mx.zeros(shape, dtype)
    return rows


def _rounding(
    parameter: ParameterPlan, start: int, exact: mx.array, rows: dict[str, mx.array]
) -> tuple[float, float]:
    widened = parameter.dtype in (parameter.source_dtype, "F32")
    first = -start % ERROR_STRIDE
    if first >= len(exact) or (parameter.quantization is None and widened):
        return 0.0, 0.0
    expected = exact[first::ERROR_STRIDE].astype(mx.float32)
    sample = [array[first : len(exact) : ERROR_STRIDE] for array in rows.values()]
    rounded = (
        unpack(sample, parameter.quantization, mx.float32)
        if parameter.quantization
        else sample[0].astype(mx.float32)
    )
    difference = fit(rounded, expected.shape) - expected
    return as_float(mx.square(difference).sum()), as_float(mx.square(expected).sum())
