import dataclasses
import itertools

import numpy as np
import pytest

from jvlm_mlx.config.image_config import ImageOptions
from jvlm_mlx.processing.image_tokens import (
    ImageTokenIds,
    image_mask,
    image_tokens,
    window_positions,
)
from jvlm_mlx.processing.tiling import plan_layout
from tests.helpers.image_goldens import (
    GOLDEN,
    RELEASED,
    RELEASED_IDS,
    TINY,
    TINY_IDS,
    read_arrays,
    read_image,
    read_json,
)

PIXELS = read_json("pixels-378.json")["images"]
CASES = {case["name"]: case for case in read_json("cases.json")["cases"]}
SINGLE = [name for name, case in CASES.items() if [len(row) for row in case["images"]] == [1]]


def golden_layout(image, config):
    image = read_image(GOLDEN / "images" / f"{image}.png")
    return plan_layout(image.height, image.width, config)


@pytest.mark.parametrize("photo", PIXELS, ids=lambda photo: photo["image"])
def test_released_model_config(photo):
    golden = read_arrays("pixels-378.npz")
    name = photo["image"].split(".")[0]
    width, height = photo["size"]
    layout = plan_layout(height, width, RELEASED)
    tokens = image_tokens(layout, RELEASED, RELEASED_IDS)
    assert tokens.dtype == np.int64
    np.testing.assert_array_equal(tokens, golden[f"{name}_tokens"])
    assert len(tokens) == layout.num_tokens == photo["n_tokens"]

    positions = window_positions(layout, RELEASED)
    expected = golden[f"{name}_input_idx"]
    assert positions.dtype == np.int64
    np.testing.assert_array_equal(positions, np.where(expected < 0, -1, expected))

    mask = image_mask(layout, RELEASED)
    assert mask.dtype == np.int8
    np.testing.assert_array_equal(mask, golden[f"{name}_mask"])


@pytest.mark.parametrize("name", SINGLE)
def test_tiny_cases(name):
    golden, case = read_arrays(f"{name}.npz"), CASES[name]
    layout = golden_layout(case["images"][0][0], TINY.override(ImageOptions(**case["overrides"])))
    ids = golden["input_ids"][0]
    offset = ids.tolist().index(TINY_IDS.start)
    tokens = image_tokens(layout, TINY, TINY_IDS)
    np.testing.assert_array_equal(ids[offset : offset + len(tokens)], tokens)
    assert TINY_IDS.end not in ids[offset + len(tokens) :]
    expected = golden["image_input_idx"][0]
    np.testing.assert_array_equal(
        window_positions(layout, TINY), np.where(expected < 0, -1, expected - offset)
    )
    np.testing.assert_array_equal(image_mask(layout, TINY), golden["image_masks"][0])


def test_two_images_of_a_prompt():
    golden = read_arrays("two_images.npz")
    first, second = golden_layout("shapes", TINY), golden_layout("dot", TINY)
    starts = np.flatnonzero(golden["input_ids"][0] == TINY_IDS.start)
    offsets = [starts[0]] * first.num_tiles + [starts[2]] * second.num_tiles
    positions = np.concatenate([window_positions(layout, TINY) for layout in (first, second)])
    expected = golden["image_input_idx"][0]
    np.testing.assert_array_equal(
        positions, np.where(expected < 0, -1, expected - np.array(offsets)[:, None])
    )


def test_example_of_the_docstring():
    layout = plan_layout(126, 196, dataclasses.replace(TINY, do_resize=False))
    assert layout.grid == (1, 2)
    positions = window_positions(layout, TINY).reshape(3, 5, 5)
    assert positions[:, :2].tolist() == [
        [[1, 2, 3, 4, 5], [7, 8, 9, 10, 11]],
        [[33, 34, 35, 36, -1], [42, 43, 44, 45, -1]],
        [[-1, 37, 38, 39, 40], [-1, 46, 47, 48, 49]],
    ]


def naive_positions(layout, config):
    """Number the kept windows tile by tile, sort by where they lie, hand out patch tokens."""
    high, wide = config.window_grid
    before, after = config.overlap_margins
    found = []
    for row, column in itertools.product(*map(range, layout.grid)):
        shares = []
        for place, tiles, patches, pooling in zip(
            (row, column), layout.grid, config.patch_grid, config.pooling_size, strict=True
        ):
            own = patches - before - after
            own += before if place == 0 else 0
            own += after if place == tiles - 1 else 0
            first = 0 if place == 0 else before // pooling
            shares.append(range(first, first + (own + pooling - 1) // pooling))
        for y, x in itertools.product(*shares):
            found.append(((row, y), (column, x), (row * layout.grid[1] + column, y * wide + x)))
    patch = iter(
        np.flatnonzero(
            image_tokens(layout, config, ImageTokenIds(start=1, end=2, patch=0, column=3, image=4))
            == 0
        )
    )
    positions = np.full((layout.num_tiles, high * wide), -1)
    positions[0] = [next(patch) for _ in range(high * wide)]
    for _, _, (tile, window) in sorted(found):
        positions[1 + tile, window] = next(patch)
    assert next(patch, None) is None
    return positions


@pytest.mark.parametrize("column_tokens", [True, False])
@pytest.mark.parametrize(
    ("tile_size", "patch", "margins", "pooling"),
    [
        ((378, 378), 14, (4, 4), (2, 2)),
        ((160, 96), 16, (1, 2), (3, 2)),
        ((96, 160), 16, (3, 0), (2, 4)),
        ((80, 80), 8, (0, 0), (1, 1)),
        ((84, 84), 14, (1, 3), (5, 7)),
    ],
)
def test_any_config(tile_size, patch, margins, pooling, column_tokens):
    config = dataclasses.replace(
        RELEASED,
        tile_size=tile_size,
        patch_size=patch,
        overlap_margins=margins,
        pooling_size=pooling,
        use_column_tokens=column_tokens,
    )
    grids = set()
    for height, width in ((30, 30), (900, 200), (300, 500), (500, 900), (200, 3000)):
        layout = plan_layout(height, width, config)
        grids.add(layout.grid)
        positions = window_positions(layout, config)
        np.testing.assert_array_equal(positions, naive_positions(layout, config))
        assert (positions >= 0).sum() == layout.num_patch_tokens
        tokens = image_tokens(
            layout, config, ImageTokenIds(start=1, end=2, patch=0, column=3, image=4)
        )
        assert len(tokens) == layout.num_tokens
        assert (3 in tokens) == column_tokens
    assert len(grids) >= 4


def test_the_mask_marks_the_last_tile_and_not_the_thumbnail():
    mask = image_mask(plan_layout(900, 1100, RELEASED), RELEASED)
    assert mask.shape == (13, 729)
    assert (mask[:-1] == 1).all()
    assert (mask[-1] == -1).all()
