"""All checks, in the order of the report."""

from collections.abc import Iterator

import mlx.core as mx

from .equality import check_equality
from .findings import Finding
from .kernels import check_kernels
from .machine import check_machine
from .speed import check_speed


def check_all(*, speed: bool = True) -> Iterator[Finding]:
    """Yield one finding after the other; the whole takes less than a minute.

    Args:
        speed: whether to take the time for the speed test.
    """
    dtype = mx.bfloat16 if mx.default_device().type == mx.gpu else mx.float32
    yield from check_machine()
    yield from check_kernels(dtype)
    yield from check_equality()
    if speed:
        yield from check_speed(dtype)
