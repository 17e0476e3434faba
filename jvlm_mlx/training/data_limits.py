"""What a row may be at most."""

from dataclasses import dataclass

from ..config.image_config import ImageOptions
from ..errors import RequestError


@dataclass(frozen=True, kw_only=True)
class DataLimits:
    """Limits on rows and their images.

    Raises:
        RequestError: there is room for no token.
    """

    max_length: int
    """Most tokens of a row, those of images and the last stop token included."""
    max_crops: int | None
    """Most tiles of an image's grid; None: the checkpoint's."""
    min_pixels: int | None
    """Area below which an image is enlarged; None: the checkpoint's."""
    max_pixels: int | None
    """Area above which an image is reduced; None: the checkpoint's."""

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise RequestError(f"max_length {self.max_length} must be at least 1")

    @property
    def of_images(self) -> ImageOptions:
        """The limits that the image processor takes."""
        return ImageOptions(
            max_crops=self.max_crops, min_pixels=self.min_pixels, max_pixels=self.max_pixels
        )
