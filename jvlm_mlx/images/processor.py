"""The image processor: from a picture to everything the model and the prompt need of it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..settings.image import ImageSettings
from .source import ImageSource, open_image
from .tiles import cut_tiles
from .tiling import ImageLayout, plan_layout
from .windows import ImageTokenIds, image_mask, image_tokens, window_positions


@dataclass(frozen=True, eq=False)
class ProcessedImage:
    """One picture, ready for the model. T tiles, P patches, V values, W windows, N tokens."""

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


class ImageProcessor:
    """Does what the original image processor does, to the last bit, for any kind of picture.

    May be called from any thread.
    """

    def __init__(self, settings: ImageSettings, ids: ImageTokenIds) -> None:
        self.settings = settings
        self.ids = ids

    def layout(
        self,
        width: int,
        height: int,
        *,
        max_crops: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> ImageLayout:
        """Return how a picture of this many pixels is tiled, without having it.

        Raises:
            ImageError: the picture is empty or too elongated.
            RequestError: a limit is out of range.
        """
        settings = self.settings.override(
            max_crops=max_crops, min_pixels=min_pixels, max_pixels=max_pixels
        )
        return plan_layout(height, width, settings)

    def __call__(
        self,
        source: ImageSource,
        *,
        max_crops: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> ProcessedImage:
        """Open a picture and cut it into tiles.

        Args:
            source: see `open_image`.
            max_crops: most tiles of the grid; None: the checkpoint's.
            min_pixels: area below which the picture is enlarged first; None: the checkpoint's.
            max_pixels: area above which the picture is reduced first; None: the checkpoint's.

        Raises:
            ImageError: the picture cannot be opened, or has a size the model cannot take.
            RequestError: a limit is out of range.
        """
        settings = self.settings.override(
            max_crops=max_crops, min_pixels=min_pixels, max_pixels=max_pixels
        )
        picture = open_image(source)
        layout = plan_layout(picture.height, picture.width, settings)
        return ProcessedImage(
            layout=layout,
            pixel_values=cut_tiles(picture, layout, settings),
            image_tokens=image_tokens(layout, settings, self.ids),
            window_positions=window_positions(layout, settings),
            image_masks=image_mask(layout, settings),
        )
