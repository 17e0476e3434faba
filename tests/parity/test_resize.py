import itertools

import numpy as np
import pytest
from PIL import Image

from jvlm_mlx.processing import resize
from jvlm_mlx.processing.resize import array_rows, image_rows, resample, unit_rows
from tests.helpers.image_goldens import read_arrays

GOLDEN = read_arrays("resize.npz")
SOURCE = GOLDEN["source"]
SIZES = {"up": (98, 126), "down": (28, 42), "mixed": (70, 30)}
VARIANTS = [
    (interpolation, antialias, kind, direction)
    for interpolation in ("bilinear", "bicubic")
    for antialias in ("plain", "aa")
    for kind in ("uint8", "float")
    for direction in SIZES
]


def resize_whole(rows, size, new_size, interpolation, antialias):
    result = np.full((new_size[0], new_size[1] * 3), np.nan, np.float32)
    for band, values in resample(rows, size, new_size, interpolation, antialias):
        assert values.dtype == np.float32
        result[band] = values
    return result


@pytest.mark.parametrize(("interpolation", "antialias", "kind", "direction"), VARIANTS)
def test_every_variant_of_the_reference(interpolation, antialias, kind, direction):
    """Compared exactly: every sum is made in the reference's order and rounded where it rounds."""
    name, new_size = f"{interpolation}-{antialias}-{kind}-{direction}", SIZES[direction]
    expected = GOLDEN[name]
    rows = image_rows(Image.fromarray(SOURCE))
    if kind == "float":
        rows = unit_rows(rows)
    found = resize_whole(rows, SOURCE.shape[:2], new_size, interpolation, antialias == "aa")
    if kind == "uint8":
        found = np.divide(np.rint(found.clip(0, 255)), 255, dtype=np.float32)
    np.testing.assert_array_equal(found.clip(0, 1).reshape(expected.shape), expected)

    again = GOLDEN[f"{name}-again"]
    rows = array_rows(expected.reshape(len(expected), -1))
    found = resize_whole(rows, new_size, again.shape[:2], interpolation, antialias == "aa")
    np.testing.assert_array_equal(found.clip(0, 1).reshape(again.shape), again)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("new_size", [(300, 20), (20, 300), (100, 120), (19, 17), (130, 5)])
@pytest.mark.parametrize("limit", ["BAND_VALUES", "MAX_READ"])
def test_bands_change_nothing(interpolation, antialias, new_size, limit, monkeypatch):
    rows, size = array_rows(SOURCE.reshape(45, -1)), (45, 61)
    whole = resize_whole(rows, size, new_size, interpolation, antialias)
    assert len(list(resample(rows, size, new_size, interpolation, antialias))) == 1
    monkeypatch.setattr(resize, limit, 700)
    assert len(list(resample(rows, size, new_size, interpolation, antialias))) > 1
    np.testing.assert_array_equal(
        resize_whole(rows, size, new_size, interpolation, antialias), whole
    )


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 3)])
def test_a_plain_area_stays_plain(interpolation, antialias, size):
    """Weights add up to 1 but for the rounding of float32 polynomials with terms up to 6."""
    rows = array_rows(np.full((size[0], size[1] * 3), 200, np.uint8))
    found = resize_whole(rows, size, (20, 150), interpolation, antialias)
    np.testing.assert_allclose(found, 200, rtol=3e-6)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_same_size_is_the_same_image(interpolation, antialias):
    rows = array_rows(SOURCE.reshape(45, -1))
    found = resize_whole(rows, (45, 61), (45, 61), interpolation, antialias)
    np.testing.assert_array_equal(found, SOURCE.reshape(45, -1))


def test_only_needed_rows_are_read():
    read = []

    def rows(top, bottom):
        read.append((top, bottom))
        return np.zeros((bottom - top, 30), np.uint8)

    list(resample(rows, (10_000, 10), (20, 10), "bilinear", False))
    # Row 0 of the result lies between source rows 249 and 250, the last one between 9749 and 9750.
    assert (read[0][0], read[-1][1]) == (249, 9751)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(read))
