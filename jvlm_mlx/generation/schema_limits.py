"""What a JSON Schema of a stranger may ask for."""

import math
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from ..config.json_file import quoted
from ..errors import RequestError

MAX_DEPTH = 64
MAX_NUMBER = 2**53
"""Integers beyond it have no exact place in JSON; the library ends the process near -(2**63)."""
MAX_MULTIPLE = 10_000
"""Least common multiple of what numbers must be multiples of, without decimal points: the library
makes a state for each remainder, a second and 50 MB for 100,000."""


def check_schema(schema: Any) -> None:
    """Refuse what llguidance would break at, or stall.

    Raises:
        RequestError: the schema is nested too deep, or its numbers are too large.
    """
    level, multiple = [schema], 1
    for _ in range(MAX_DEPTH):
        for one in level:
            if isinstance(one, int) and abs(one) > MAX_NUMBER:
                raise RequestError(f"the schema has the number {quoted(one)}; at most 2**53")
            if isinstance(one, Mapping) and "multipleOf" in one:
                multiple = math.lcm(multiple, _whole(one["multipleOf"]))
        level = [inner for one in level for inner in _inner_values(one)]
    if level:
        raise RequestError(f"the schema is nested more than {MAX_DEPTH} deep")
    if multiple > MAX_MULTIPLE:
        raise RequestError(
            "the schema asks for multiples of numbers with the common multiple of"
            f" {quoted(multiple)}; at most {MAX_MULTIPLE}"
        )


def _whole(number: Any) -> int:
    """Return a number without its decimal point, 5 for 0.05; 1 for what is no number."""
    if isinstance(number, int):
        return abs(int(number)) or 1
    if not isinstance(number, float) or not math.isfinite(number):
        return 1
    fraction = Decimal(repr(number)).normalize().as_tuple()
    assert isinstance(fraction.exponent, int)
    digits = int("".join(map(str, fraction.digits))) or 1
    return digits * 10 ** max(0, fraction.exponent)


def _inner_values(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else ()
