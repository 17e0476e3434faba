import dataclasses

import pytest

from jvlm_mlx.config.image_config import ImageOptions
from jvlm_mlx.errors import CheckpointError, ImageError, RequestError
from jvlm_mlx.processing.tiling import kept_windows, plan_layout
from tests.helpers.image_goldens import RELEASED, TINY, read_json

LAYOUTS = read_json("layout-378.json")["rows"]


def test_all_golden_layouts():
    found, expected = [], []
    for row in LAYOUTS:
        size = row["width"], row["height"]
        try:
            layout = plan_layout(row["height"], row["width"], RELEASED)
        except ImageError as error:
            found.append((size, str(error).partition(":")[0]))
        else:
            found.append(
                (
                    size,
                    list(layout.resized_size),
                    list(layout.grid),
                    layout.num_tiles,
                    layout.num_tokens,
                    layout.num_patch_tokens,
                )
            )
        keys = ("resized", "tiling", "n_crops", "n_image_tokens", "n_patch_tokens")
        expected.append(
            (size, "the image is too elongated")
            if "error" in row
            else (size, *(row[key] for key in keys))
        )
    assert len(found) == 428
    assert found == expected


def test_whole_layout():
    layout = plan_layout(3024, 4032, RELEASED)
    assert dataclasses.asdict(layout) == {
        "resized_size": (854, 1148),
        "grid": (3, 4),
        "canvas_size": (910, 1176),
        "num_tiles": 13,
        "block": (34, 44),
        "num_patch_tokens": 196 + 34 * 44,
        "num_tokens": 1744,
    }


@pytest.mark.parametrize(
    ("height", "width", "line"),
    [
        (0, 5, "the image is empty: 5 x 0 pixels"),
        (5, 0, "the image is empty: 0 x 5 pixels"),
        (5, 1001, "the image is too elongated: 1001 x 5 pixels"),
        (1001, 5, "the image is too elongated: 5 x 1001 pixels"),
    ],
)
def test_impossible_sizes(height, width, line):
    with pytest.raises(ImageError, match=line):
        plan_layout(height, width, RELEASED)


def test_two_hundred_to_one_is_possible():
    assert plan_layout(5, 1000, RELEASED).grid[0] == 1


@pytest.mark.parametrize(("side", "resized"), [(147, 140), (161, 168), (175, 168), (189, 196)])
def test_half_a_patch_rounds_to_even(side, resized):
    assert plan_layout(side, 280, RELEASED).resized_size == (resized, 280)


def test_a_side_never_shrinks_to_nothing():
    config = RELEASED.override(ImageOptions(max_pixels=3136))
    assert plan_layout(30, 6000, config).resized_size == (14, 784)


@pytest.mark.parametrize(
    ("height", "width", "grid"),
    [
        (112, 112, (1, 1)),  # both scales infinite: the first grid
        (112, 644, (1, 2)),  # one infinite: the other side decides
        (112, 98, (1, 1)),  # infinite and negative: the largest negative
        (98, 1120, (1, 1)),  # negative: enlarging a side counts for nothing
        (70, 42, (1, 1)),
    ],
)
def test_sides_up_to_the_overlap(height, width, grid):
    config = dataclasses.replace(RELEASED, do_resize=False)
    layout = plan_layout(height, width, config)
    assert layout.resized_size == (height, width)
    assert layout.grid == grid


def test_max_crops():
    for most in range(1, 13):
        layout = plan_layout(900, 1100, RELEASED.override(ImageOptions(max_crops=most)))
        rows, columns = layout.grid
        assert rows * columns <= most
        assert layout.num_tiles == 1 + rows * columns
    assert plan_layout(900, 1100, RELEASED.override(ImageOptions(max_crops=4))).grid == (2, 2)
    assert plan_layout(900, 1100, RELEASED.override(ImageOptions(max_crops=1))).grid == (1, 1)


def test_rectangular_tiles():
    config = dataclasses.replace(
        RELEASED, tile_size=(160, 96), patch_size=16, overlap_margins=(1, 2), pooling_size=(3, 2)
    )
    # A tile adds (10 - 3) x (6 - 3) patches: 112 x 48 pixels; 48 are shared.
    layout = plan_layout(320, 320, config)
    assert layout.resized_size == (320, 320)
    assert layout.grid == (2, 5)
    assert layout.canvas_size == (2 * 112 + 48, 5 * 48 + 48)
    # Rows: 8 and 9 patches in windows of 3; columns: 4, 3, 3, 3, 5 in windows of 2.
    assert layout.block == (3 + 3, 2 + 2 + 2 + 2 + 3)
    assert config.window_grid == (4, 3)
    assert layout.num_patch_tokens == 4 * 3 + 6 * 11
    assert layout.num_tokens == (2 + 4 * (3 + 1)) + (2 + 6 * (11 + 1))
    without = dataclasses.replace(config, use_column_tokens=False)
    assert plan_layout(320, 320, without).num_tokens == (2 + 4 * 3) + (2 + 6 * 11)


@pytest.mark.parametrize(
    ("tiles", "first", "count"),
    [(1, [0], [14]), (2, [0, 2], [12, 12]), (4, [0, 2, 2, 2], [12, 10, 10, 12])],
)
def test_kept_windows(tiles, first, count):
    found = kept_windows(tiles, 27, (4, 4), 2)
    assert [array.tolist() for array in found] == [first, count]


@pytest.mark.parametrize(
    ("limits", "line"),
    [
        ({"max_crops": -3}, "max_crops is -3; expected 0 to 1000"),
        ({"max_crops": 10**9}, "max_crops is 1000000000"),
        ({"max_crops": 2.5}, "max_crops is 2.5; expected a whole number"),
        ({"max_crops": True}, "max_crops is True; expected a whole number"),
        ({"max_pixels": 10**8}, "max_pixels is 100000000; expected 1 to 67108864"),
        ({"min_pixels": 10**8}, "min_pixels is 100000000; expected 1 to 67108864"),
        ({"do_resize": 1}, "do_resize is 1; expected true or false"),
        ({"max_pixels": "big"}, "max_pixels is 'big'; expected a whole number"),
        ({"min_pixels": 0}, "min_pixels is 0; expected 1 to"),
        ({"min_pixels": 500, "max_pixels": 400}, "min_pixels 500 and max_pixels 400"),
        ({"max_pixels": 3000}, "min_pixels 3136 and max_pixels 3000"),
    ],
)
def test_limits_of_a_request(limits, line):
    with pytest.raises(RequestError, match=line):
        RELEASED.override(ImageOptions(**limits))


def test_limits_that_are_none_stay():
    assert RELEASED.override(ImageOptions()) == RELEASED
    assert RELEASED.override(ImageOptions(max_crops=3, min_pixels=None)).max_crops == 3
    assert TINY.override(ImageOptions(max_pixels=99_999)).max_pixels == 99_999


def test_without_the_first_resize_an_image_may_be_elongated():
    """As in the reference, whose first resize refuses it."""
    config = RELEASED.override(ImageOptions(do_resize=False))
    assert plan_layout(3, 1000, config).grid[0] == 1
    with pytest.raises(ImageError, match="too elongated"):
        plan_layout(3, 1000, RELEASED)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"tile_size": (378, 380)}, "not a multiple of patch_size 14"),
        ({"overlap_margins": (14, 13)}, "leave nothing of a tile"),
        ({"pooling_size": (2, 0)}, "at least 1 patch each"),
        ({"image_std": (0.5, 0.0, 0.5)}, "none of image_std 0"),
        ({"image_mean": (0.5,)}, "three numbers each"),
        ({"max_crops": -1}, "max_crops is -1"),
    ],
)
def test_contradictory_settings_of_a_checkpoint(change, line):
    with pytest.raises(CheckpointError, match=line):
        dataclasses.replace(RELEASED, **change)
