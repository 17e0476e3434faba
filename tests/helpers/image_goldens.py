"""What the tests of the image side share: config and photos."""

import json
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from jvlm_mlx.config.config_reader import ConfigReader
from jvlm_mlx.config.image_config import ImageConfig
from jvlm_mlx.processing.image_tokens import ImageTokenIds

GOLDEN = Path(__file__).parents[1] / "golden"
PHOTOS = Path(skimage.data.data_dir)


def read_json(name):
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


def read_arrays(name):
    with np.load(GOLDEN / name) as arrays:
        return dict(arrays)


def read_image(path):
    with Image.open(path) as image:
        return image.convert("RGB")


def read_config(name):
    return ImageConfig.read(ConfigReader(read_json(name), name))


RELEASED = read_config("released-preprocessor_config.json")
TINY = read_config("tiny/preprocessor_config.json")


def token_ids(name):
    config = read_json(name)
    return ImageTokenIds(
        **{key: config[f"{key}_token_id"] for key in ("start", "end", "patch", "column")}, image=-1
    )


RELEASED_IDS = token_ids("released-preprocessor_config.json")
TINY_IDS = token_ids("tiny/preprocessor_config.json")
