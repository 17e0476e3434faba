"""Real photos that scikit-image ships, and the release's processor for them."""

import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from jvlm_mlx.config.config_reader import ConfigReader
from jvlm_mlx.config.image_config import ImageConfig
from jvlm_mlx.processing.image_processor import ImageProcessor
from jvlm_mlx.processing.image_tokens import ImageTokenIds

RELEASED = Path(__file__).parents[1] / "released"
TILES = {2: 1, 5: 4, 10: 9, 13: 12}
"""Tiles of an image with its thumbnail, and the `max_crops` that gives them. There is always a
thumbnail, so 2 is the fewest."""
IMAGE_TOKEN_IDS = ImageTokenIds(start=151936, end=151937, patch=151938, column=151939, image=151940)


@dataclass(frozen=True)
class PhotoInputs:
    """One photo and some text, as the model takes them; fields as in `ModelInputs`."""

    input_ids: npt.NDArray[Any]
    pixel_values: npt.NDArray[Any]
    image_masks: npt.NDArray[Any]
    image_input_idx: npt.NDArray[Any]

    @property
    def tiles(self) -> int:
        """Tiles, the thumbnail included."""
        return int(self.pixel_values.shape[1])


def photo_bytes(tiles: int) -> bytes:
    """Return a photo that can have so many tiles, as a JPEG file of 1.5 or 1.4 megapixels.

    A grid of 3 x 3 needs a square photo; the others are of 3 : 2.
    """
    from skimage import data

    file = BytesIO()
    photo = Image.fromarray(data.astronaut() if tiles == 10 else data.coffee())
    size = (1200, 1200) if tiles == 10 else (1500, 1000)
    photo.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def image_processor() -> ImageProcessor:
    """Return the release's image processor."""
    text = (RELEASED / "preprocessor_config.json").read_text(encoding="utf-8")
    config = ImageConfig.read(ConfigReader(json.loads(text), "preprocessor_config.json"))
    return ImageProcessor(config, IMAGE_TOKEN_IDS)


def photo_inputs(tiles: int, text_tokens: int = 24, seed: int = 0) -> PhotoInputs:
    """Return a prompt of one photo of so many tiles, followed by text.

    Args:
        tiles: one of `TILES`.
        text_tokens: random token ids behind the image.
        seed: of these ids.
    """
    image = image_processor()(photo_bytes(tiles), max_crops=TILES[tiles])
    ids = np.random.default_rng(seed).integers(1000, 100_000, text_tokens)
    return PhotoInputs(
        input_ids=np.concatenate([image.image_tokens, ids])[None],
        pixel_values=image.pixel_values[None],
        image_masks=image.image_masks[None],
        image_input_idx=image.window_positions[None],
    )
