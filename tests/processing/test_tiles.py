import dataclasses
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from jvlm_mlx.config.image_config import ImageOptions
from jvlm_mlx.processing.tiles import cut_tiles, normalize, resize_source
from jvlm_mlx.processing.tiling import plan_layout
from tests.helpers.image_goldens import (
    GOLDEN,
    PHOTOS,
    RELEASED,
    TINY,
    read_arrays,
    read_image,
    read_json,
)

PIXELS = read_json("pixels-378.json")["images"]
CASES = {case["name"]: case for case in read_json("cases.json")["cases"]}
SINGLE = [name for name, case in CASES.items() if name != "text_only" and len(case["images"]) == 1]


def cut(image, config):
    layout = plan_layout(image.height, image.width, config)
    return cut_tiles(resize_source(image, layout, config), layout, config)


def some_image(width, height):
    """Smooth in one half and noisy in the other."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    noise[:, : width // 2] = np.arange(height)[:, None, None] % 256
    return Image.fromarray(noise)


@pytest.mark.parametrize("photo", PIXELS, ids=lambda photo: photo["image"])
def test_photos_at_the_released_model_config(photo):
    """All sampled values are the reference's, exactly: each sum is rounded where it rounds."""
    golden, name = read_arrays("pixels-378.npz"), photo["image"].split(".")[0]
    pixel_values = cut(read_image(PHOTOS / photo["image"]), RELEASED)
    assert pixel_values.dtype == np.float32
    assert list(pixel_values.shape) == photo["patches"]
    sampled = pixel_values.reshape(-1)[golden[f"{name}_pos"]]
    np.testing.assert_array_equal(sampled, golden[f"{name}_val"])
    # Means of 428,652 float32 numbers: their own rounding depends on the order of the sum.
    means = pixel_values.mean(axis=(1, 2), dtype=np.float64)
    np.testing.assert_allclose(means, golden[f"{name}_crop_mean"], atol=1e-6)


@pytest.mark.parametrize("name", SINGLE)
def test_tiny_cases(name):
    golden, case = read_arrays(f"{name}.npz"), CASES[name]
    config = TINY.override(ImageOptions(**case["overrides"]))
    pixel_values = np.concatenate(
        [cut(read_image(GOLDEN / "images" / f"{image}.png"), config) for image in case["images"][0]]
    )
    assert [1, *pixel_values.shape] == golden["images_shape"].tolist()
    sampled = pixel_values.reshape(-1)[golden["images_pos"]]
    np.testing.assert_array_equal(sampled, golden["images_val"])
    if "images" in golden:
        np.testing.assert_array_equal(pixel_values, golden["images"][0])


@pytest.mark.parametrize("method", ["gaussian", "minmax"])
def test_both_normalizations(method):
    golden = read_arrays("resize.npz")
    source = np.divide(golden["source"], 255, dtype=np.float32)
    found = np.empty((45, 61 * 3), np.float32)
    config = dataclasses.replace(RELEASED, normalization_method=method)
    normalize(source.reshape(45, -1), config, out=found)
    np.testing.assert_array_equal(found.reshape(source.shape), golden[method])


def test_another_image_range():
    image = some_image(150, 130)
    plain = cut(image, TINY)
    found = cut(image, dataclasses.replace(TINY, image_range=(0.0, 4.0)))
    # -1 + 2 x and 4 x are each rounded once, to 2 ** -23 of at most 4.
    np.testing.assert_allclose(found, (plain + 1) * 2, atol=4 * 2**-23)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_black_is_exactly_the_value_of_an_empty_tile(interpolation, antialias):
    """The model takes a tile of -1 throughout for none, in the reference too."""
    config = dataclasses.replace(TINY, interpolation=interpolation, antialias=antialias)
    assert (cut(Image.new("RGB", (333, 222)), config) == -1).all()


@pytest.mark.parametrize(
    "change",
    [
        {"interpolation": "bicubic"},
        {"antialias": True},
        {"resize_in_float32": True},
        {"normalization_method": "gaussian"},
        {"image_range": (0.0, 1.0)},
        {"do_resize": False},
        {"max_pixels": 40_000},
        {"min_pixels": 120_000},
        {"max_crops": 2},
        {"overlap_margins": (1, 1)},
        {"tile_size": (126, 154)},
        {"patch_size": 18},
    ],
    ids=str,
)
def test_every_setting_is_honored(change):
    image = some_image(301, 253)
    before, after = cut(image, TINY), cut(image, dataclasses.replace(TINY, **change))
    assert before.shape != after.shape or (before != after).any()


def test_the_first_resize_rounds_to_8_bits():
    """Its result is multiples of 1 / 255, which the thumbnail shows where it is not resized."""
    image = some_image(100, 100)
    whole = dataclasses.replace(TINY, min_pixels=126 * 126, max_pixels=126 * 126)
    thumbnail = (cut(image, whole)[0].astype(np.float64) + 1) / 2 * 255
    np.testing.assert_allclose(thumbnail, thumbnail.round(), atol=1e-4)  # float32 of 255
    in_float32 = dataclasses.replace(whole, resize_in_float32=True)
    thumbnail = (cut(image, in_float32)[0].astype(np.float64) + 1) / 2 * 255
    assert np.abs(thumbnail - thumbnail.round()).max() > 0.4


@pytest.mark.parametrize("in_float32", [False, True])
def test_without_the_first_resize_the_second_rounds_to_8_bits(in_float32):
    """The reference then resizes to tiles from 8 bits, and rounds unless it works in float32."""
    config = dataclasses.replace(TINY, do_resize=False, resize_in_float32=in_float32)
    values = (cut(some_image(301, 253), config).astype(np.float64) + 1) / 2 * 255
    distance = np.abs(values - values.round()).max()
    assert distance > 0.4 if in_float32 else distance < 1e-4  # float32 of 255


def test_no_antialiasing():
    """A fine checkerboard stays as rough as it is; smoothing it would give an even gray."""
    board = np.indices((600, 600)).sum(axis=0).astype(np.uint8) % 2 * 255
    image = Image.fromarray(board).convert("RGB")
    assert cut(image, TINY)[0].std() > 0.2
    assert cut(image, dataclasses.replace(TINY, antialias=True))[0].std() < 0.05


@pytest.mark.parametrize("in_float32", [True, False])
def test_overshoot_is_clipped(in_float32):
    """Bicubic weights are partly negative, so next to an edge they leave the range."""
    image = Image.new("RGB", (300, 200))
    image.paste("white", (100, 50, 200, 150))
    config = dataclasses.replace(TINY, interpolation="bicubic", resize_in_float32=in_float32)
    found = cut(image, config)
    assert (found.min(), found.max()) == (-1, 1)


def unfold(tile, config):
    """Patches back to (height, width, 3)."""
    rows, columns = config.patch_grid
    patch = config.patch_size
    pixels = tile.reshape(rows, columns, patch, patch, 3)
    return np.concatenate([np.concatenate(list(row), axis=1) for row in pixels])


def test_rectangular_tiles_without_any_resize():
    config = dataclasses.replace(
        TINY,
        tile_size=(160, 96),
        patch_size=16,
        overlap_margins=(1, 2),
        do_resize=False,
        max_crops=12,
    )
    # 2 x 3 tiles: 2 x 112 + 48 by 3 x 48 + 48 pixels, so the canvas is the image itself.
    image = some_image(192, 272)
    layout = plan_layout(272, 192, config)
    assert (layout.grid, layout.canvas_size) == ((2, 3), (272, 192))
    tiles = cut(image, config)
    assert tiles.shape == (7, 60, 768)
    pixels = np.asarray(image)
    for number, tile in enumerate(tiles[1:]):
        top, left = number // 3 * 112, number % 3 * 48
        expected = pixels[top : top + 160, left : left + 96]
        found = (unfold(tile, config).astype(np.float64) + 1) / 2 * 255
        np.testing.assert_allclose(found, expected, atol=1e-4)  # float32 of 255


@pytest.mark.parametrize("size", [(1, 1), (14, 14), (112, 112), (112, 50), (60, 2000)])
def test_without_the_first_resize_any_size_works(size):
    config = dataclasses.replace(RELEASED, do_resize=False)
    assert np.isfinite(cut(some_image(*size), config)).all()


@pytest.mark.parametrize("do_resize", [True, False])
def test_memory_does_not_grow_with_the_image(do_resize, monkeypatch):
    image = Image.linear_gradient("L").resize((6000, 4000)).convert("RGB")
    config = dataclasses.replace(RELEASED, do_resize=do_resize, max_crops=1)
    crops = []
    crop = Image.Image.crop

    def watched(self, box):
        crops.append((box[2] - box[0]) * (box[3] - box[1]))
        return crop(self, box)

    monkeypatch.setattr(Image.Image, "crop", watched)
    layout = plan_layout(4000, 6000, config)
    tracemalloc.start()
    try:
        tiles = cut_tiles(resize_source(image, layout, config), layout, config)
        peak = tracemalloc.get_traced_memory()[1] - tiles.nbytes
    finally:
        tracemalloc.stop()
    # The image holds 72 MB. What is needed at least: 3 MB for the result of the first resize,
    # 2 MB for the canvas; the rest is the bands worked on.
    assert peak < 72e6 / 5
    assert max(crops) < 6000 * 4000 / 20
