"""Reading weight files by rows."""

import pytest

from jvlm_mlx.checkpoint.reader import row_blocks


@pytest.mark.parametrize(
    ("shape", "values", "expected"),
    [
        ((10, 4), 12, [(0, 3), (3, 6), (6, 9), (9, 10)]),
        ((6, 2, 2), 12, [(0, 3), (3, 6)]),
        ((2, 100), 12, [(0, 1), (1, 2)]),  # one row is the least
        ((5, 0), 12, [(0, 5)]),
        ((0, 4), 12, []),
        ((1000,), 12, [(0, 1000)]),
        ((), 12, [(0, 1)]),
    ],
)
def test_blocks_of_rows(shape, values, expected):
    assert row_blocks(shape, values) == expected
