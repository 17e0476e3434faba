"""An image that has been opened, before anything of it is computed."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..config.image_config import ImageConfig
from .image_tokens import ImageTokenIds, image_mask, image_tokens, window_positions
from .tiles import cut_tiles
from .tiling import ImageLayout

_HASHED_ROWS = 512


@dataclass(frozen=True, eq=False)
class ProcessedImage:
    """One image, ready for the model. T tiles, P patches, V values, W windows, N tokens."""

    layout: ImageLayout
    """How it was tiled."""
    pixel_values: NDArray[np.float32]
    """(T, P, V) thumbnail first, then the grid row by row."""
    image_tokens: NDArray[np.int64]
    """(N,) the tokens that replace its placeholder in the prompt."""
    window_positions: NDArray[np.int64]
    """(T, W) where in `image_tokens` the token of each pooled window stands; -1 if it has none."""
    image_masks: NDArray[np.int8]
    """(T, P) 1, and -1 in the last tile."""


@dataclass(frozen=True, eq=False)
class OpenedImage:
    """An image and everything that decides what the model will see of it."""

    name: str
    """What messages call it."""
    image: Image.Image
    """In RGB, upright."""
    config: ImageConfig
    """With the limits of the request applied."""
    token_ids: ImageTokenIds
    layout: ImageLayout

    @cached_property
    def digest(self) -> str:
        """The same for the same pixels under the same config, and for nothing else."""
        digest = hashlib.sha256(repr((self.image.size, self.config, self.token_ids)).encode())
        for rows in _rows(self.image):
            digest.update(rows)
        return digest.hexdigest()

    def cut(self) -> ProcessedImage:
        """Cut it into tiles."""
        return ProcessedImage(
            layout=self.layout,
            pixel_values=cut_tiles(self.image, self.layout, self.config),
            image_tokens=image_tokens(self.layout, self.config, self.token_ids),
            window_positions=window_positions(self.layout, self.config),
            image_masks=image_mask(self.layout, self.config),
        )


def _rows(image: Image.Image) -> Iterator[bytes]:
    """Yield the pixels in bands, so that a large image is not copied as a whole."""
    for top in range(0, image.height, _HASHED_ROWS):
        bottom = min(top + _HASHED_ROWS, image.height)
        yield image.crop((0, top, image.width, bottom)).tobytes()
