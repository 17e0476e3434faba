"""preprocessor_config.json, where it says less than the release, or more than is read."""

import pytest

from jvlm_mlx.config.config_reader import ConfigReader
from jvlm_mlx.config.image_config import CLIP_MEAN, CLIP_STD, ImageConfig
from jvlm_mlx.errors import CheckpointError, UnsupportedSettingError
from tests.helpers.image_goldens import read_json


def read(*absent, **changes):
    """Read the released settings with some absent and some changed."""
    values = read_json("released-preprocessor_config.json") | changes
    for name in absent:
        del values[name]
    return ImageConfig.read(ConfigReader(values, "preprocessor_config.json"))


@pytest.mark.parametrize(
    ("absent", "field", "expected"),
    [
        ("base_input_size", "tile_size", (336, 336)),
        ("patch_size", "patch_size", 14),
        ("overlap_margins", "overlap_margins", (4, 4)),
        ("max_crops", "max_crops", 6),
        ("min_pixels", "min_pixels", 3136),
        ("max_pixels", "max_pixels", 1003520),
        ("pooling_h", "pooling_size", (2, 2)),
        ("use_column_tokens", "use_column_tokens", True),
        ("do_resize", "do_resize", True),
        ("interpolation", "interpolation", "bicubic"),
        ("antialias", "antialias", True),
        ("resize_in_float32", "resize_in_float32", True),
        ("normalization_method", "normalization_method", "gaussian"),
        ("image_min", "image_range", (-1.0, 1.0)),
        ("image_mean", "image_mean", CLIP_MEAN),
        ("image_std", "image_std", CLIP_STD),
    ],
)
def test_absent_settings_have_the_references_defaults(absent, field, expected):
    changes = {"image_mean": [0.1] * 3, "image_std": [0.2] * 3} | (
        {"token_length_h": 12, "token_length_w": 12} if absent == "base_input_size" else {}
    )
    assert getattr(read(absent, **changes), field) == expected


@pytest.mark.parametrize(
    ("change", "field", "expected"),
    [
        ({"image_min": 0.0}, "image_range", (-1.0, 1.0)),
        ({"image_max": 0}, "image_range", (-1.0, 1.0)),
        ({"image_min": 0.5, "image_max": 2}, "image_range", (0.5, 2.0)),
        ({"image_mean": 0.25}, "image_mean", (0.25,) * 3),
        ({"image_std": 0.25}, "image_std", (0.25,) * 3),
        ({"base_input_size": 378}, "tile_size", (378, 378)),
    ],
)
def test_values_are_read_as_the_reference_reads_them(change, field, expected):
    assert getattr(read(**change), field) == expected


def test_size_has_no_effect_and_a_notice_says_so(caplog):
    repeated = {"shortest_edge": 3136, "longest_edge": 1003520}
    assert read(size=repeated) == read("size") == read("min_pixels", "max_pixels", size=repeated)
    assert not caplog.records
    other = {"shortest_edge": 100, "longest_edge": 150_000}
    assert read("min_pixels", "max_pixels", size=other) == read()
    assert "preprocessor_config.json.size has no effect" in caplog.text
    with pytest.raises(CheckpointError, match=r"size\.longest_edge is missing"):
        read(size={"shortest_edge": 100})


def test_another_way_of_cropping_is_refused_by_name():
    with pytest.raises(UnsupportedSettingError, match="cropping_method = 'resize'"):
        read(cropping_method="resize")
    with pytest.raises(UnsupportedSettingError, match="cropping_method = 'resize'"):
        read("cropping_method")


@pytest.mark.parametrize(
    "change",
    [
        {"base_input_size": [378]},
        {"base_input_size": "378"},
        {"base_input_size": True},
        {"overlap_margins": 4},
        {"overlap_margins": [4, 4, 4]},
        {"image_mean": "0.5"},
        {"image_std": 0},
        {"image_std": 5e-324},
        {"image_mean": [1e300, 0, 0]},
        {"image_min": 1e39},
        {"max_pixels": 10**9},
        {"max_crops": 0},
        {"size": 7},
    ],
    ids=str,
)
def test_values_that_make_no_sense(change):
    with pytest.raises(CheckpointError):
        read(**change)
