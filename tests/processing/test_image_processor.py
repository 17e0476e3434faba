import numpy as np
import pytest
from PIL import Image

from jvlm_mlx.errors import ImageError, RequestError
from jvlm_mlx.processing.image_processor import ImageProcessor
from jvlm_mlx.processing.tiling import plan_layout
from tests.helpers.image_goldens import (
    GOLDEN,
    PHOTOS,
    RELEASED,
    RELEASED_IDS,
    TINY,
    TINY_IDS,
    read_arrays,
)

COFFEE = GOLDEN / "images" / "coffee.png"


@pytest.fixture(scope="module")
def tiny():
    return ImageProcessor(TINY, TINY_IDS)


def test_everything_of_an_image(tiny):
    golden = read_arrays("shapes.npz")
    image = tiny(GOLDEN / "images" / "shapes.png")
    ids = golden["input_ids"][0]
    offset = ids.tolist().index(TINY_IDS.start)
    np.testing.assert_array_equal(image.pixel_values, golden["images"][0])
    np.testing.assert_array_equal(image.image_masks, golden["image_masks"][0])
    np.testing.assert_array_equal(
        image.image_tokens, ids[offset : offset + image.layout.num_tokens]
    )
    kept = image.window_positions >= 0
    np.testing.assert_array_equal(
        image.window_positions[kept] + offset, golden["image_input_idx"][0][kept]
    )
    assert (image.image_tokens[image.window_positions[kept]] == TINY_IDS.patch).all()


def test_layout_without_an_image():
    processor = ImageProcessor(RELEASED, RELEASED_IDS)
    assert processor.layout(4032, 3024) == plan_layout(3024, 4032, RELEASED)
    assert processor.layout(4032, 3024).grid == (3, 4)
    assert processor.layout(4032, 3024, max_crops=2).grid == (1, 2)
    assert processor.layout(4032, 3024, max_pixels=200_000).resized_size == (378, 504)
    assert processor.layout(40, 30, min_pixels=50_000).resized_size == (196, 266)
    assert processor(PHOTOS / "page.png").layout == processor.layout(384, 191)


@pytest.mark.parametrize(
    "limits", [{"max_crops": 2}, {"max_pixels": 20_000}, {"min_pixels": 100_000}]
)
def test_limits_of_a_request(tiny, limits):
    opened = Image.new("RGB", (300, 200))
    image = tiny(opened, **limits)
    assert image.layout == tiny.layout(300, 200, **limits)
    assert image.layout != tiny.layout(300, 200)
    assert len(image.pixel_values) == image.layout.num_tiles
    assert len(image.image_tokens) == image.layout.num_tokens
    assert len(image.window_positions) == len(image.image_masks) == image.layout.num_tiles
    assert tiny(opened).layout == tiny.layout(300, 200)


def test_max_crops_gives_the_golden_pixels(tiny):
    golden = read_arrays("coffee_max_crops_4.npz")
    image = tiny(COFFEE, max_crops=4)
    sampled = image.pixel_values.reshape(-1)[golden["images_pos"]]
    np.testing.assert_array_equal(sampled, golden["images_val"])


@pytest.mark.parametrize("do_resize", [True, False])
def test_the_thumbnail_alone(tiny, do_resize):
    whole, alone = (tiny(COFFEE, max_crops=limit, do_resize=do_resize) for limit in (4, 0))
    assert alone.layout.num_tiles == 1
    count = alone.layout.num_tokens
    np.testing.assert_array_equal(alone.pixel_values, whole.pixel_values[:1])
    np.testing.assert_array_equal(alone.image_tokens, whole.image_tokens[:count])
    np.testing.assert_array_equal(alone.window_positions, whole.window_positions[:1])
    # The last tile is the one that is marked.
    np.testing.assert_array_equal(alone.image_masks, whole.image_masks[-1:])
    assert tiny.layout(480, 320, max_crops=0, do_resize=do_resize) == alone.layout


def test_errors(tiny):
    with pytest.raises(RequestError, match="max_crops is -1"):
        tiny(COFFEE, max_crops=-1)
    with pytest.raises(RequestError, match="max_crops is -1"):
        tiny.layout(600, 400, max_crops=-1)
    with pytest.raises(ImageError, match="cannot be opened"):
        tiny("nowhere.png")
    with pytest.raises(ImageError, match="too elongated: 1 x 300 pixels"):
        tiny(np.zeros((300, 1), np.uint8))
