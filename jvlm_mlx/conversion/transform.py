"""Turns rows of the source into rows of the output, and measures what rounding costs."""

import math

import mlx.core as mx

from ..checkpoint.quantization import fit, pack, unpack
from ..checkpoint.weights import Checkpoint, ValueCheck, as_float
from ..config.dtypes import BY_CODE
from .plan import ParameterPlan

ERROR_STRIDE = 32
"""The rounding error is measured on each row whose number is a multiple of this."""

Squares = tuple[float, float]
"""Sums of squares: of rounding errors, and of the values themselves, on a sample of rows."""


def transform_rows(
    source: Checkpoint, parameter: ParameterPlan, start: int, stop: int, check: ValueCheck
) -> tuple[dict[str, mx.array], Squares]:
    """Return rows from `start` up to `stop` of each output tensor of a parameter, evaluated.

    `check` is called with all stored values.

    Returns:
        The rows by tensor name; and sums of squares, 0 where nothing is rounded.
    """
    if parameter.keeps_packed:
        rows = _packed_rows(source, parameter, start, stop, check)
        mx.eval(rows)
        return rows, (0.0, 0.0)
    exact = _exact_rows(source, parameter, start, stop, check)
    values = fit(exact.astype(BY_CODE[parameter.dtype].mlx), (stop - start, *parameter.shape[1:]))
    if parameter.quantization is None:
        rows = {parameter.path: values}
    else:
        packed = pack(values, parameter.quantization)
        rows = dict(zip((output.name for output in parameter.outputs), packed, strict=True))
    mx.eval(rows)
    return rows, _rounding(parameter, start, exact, rows)


def _exact_rows(
    source: Checkpoint, parameter: ParameterPlan, start: int, stop: int, check: ValueCheck
) -> mx.array:
    """Return rows as the source has them, without padding; perhaps fewer than asked for."""
    stop = min(stop, parameter.source_shape[0])
    # What was quantized has no type of its own: it is unpacked to the one that is asked for.
    code = parameter.dtype if parameter.source_quantization else parameter.source_dtype
    dtype = BY_CODE[code].mlx
    if start >= stop:
        return mx.zeros((0, *parameter.source_shape[1:]), dtype)
    return source.values(parameter.path, start, stop, dtype, check)


def _packed_rows(
    source: Checkpoint, parameter: ParameterPlan, start: int, stop: int, check: ValueCheck
) -> dict[str, mx.array]:
    """Return rows as they are; rows of zeros only are zeros in every format."""
    last = min(stop, parameter.source_shape[0])
    rows = {}
    for output in parameter.outputs:
        dtype, shape = BY_CODE[output.dtype].mlx, (stop - start, *output.shape[1:])
        if start < last:
            stored = source.rows(output.name, start, last, check)
            rows[output.name] = fit(stored.astype(dtype), shape)
        else:
            rows[output.name] = mx.zeros(shape, dtype)
    return rows


def _rounding(
    parameter: ParameterPlan, start: int, exact: mx.array, rows: dict[str, mx.array]
) -> Squares:
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


def relative_error(squares: list[Squares]) -> float:
    """Return the root of the quotient of two sums of squares, each given as partial sums."""
    # Exact sums do not depend on how rows were cut.
    errors, values = (math.fsum(column) for column in zip(*squares, strict=True))
    return math.sqrt(errors / values) if values else math.inf
