"""What the tests of the picture side share: settings and photos."""

import json
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from jvlm_mlx.processing.image_tokens import ImageTokenIds
from jvlm_mlx.config.image_config import ImageSettings
from jvlm_mlx.config.config_reader import SettingsReader

GOLDEN = Path(__file__).parent / "golden"
PHOTOS = Path(skimage.data.data_dir)


def read_json(name):
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


def read_arrays(name):
    with np.load(GOLDEN / name) as arrays:
        return dict(arrays)


def read_picture(path):
    with Image.open(path) as picture:
        return picture.convert("RGB")


def read_settings(name):
    return ImageSettings.read(SettingsReader(read_json(name), name))


RELEASED = read_settings("released-preprocessor_config.json")
TINY = read_settings("tiny/preprocessor_config.json")


def token_ids(name):
    config = read_json(name)
    return ImageTokenIds(
        **{key: config[f"{key}_token_id"] for key in ("start", "end", "patch", "column")}, image=-1
    )


RELEASED_IDS = token_ids("released-preprocessor_config.json")
TINY_IDS = token_ids("tiny/preprocessor_config.json")
