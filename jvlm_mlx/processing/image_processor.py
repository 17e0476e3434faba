"""The image processor: from an image to everything the model and the prompt need of it."""

from ..config.image_config import ImageConfig
from .image_io import ImageSource, open_image, source_name
from .image_tokens import ImageTokenIds
from .opened_image import OpenedImage, ProcessedImage
from .tiling import ImageLayout, plan_layout


class ImageProcessor:
    """Does what the original image processor does, to the last bit, for any kind of image.

    May be called from any thread.
    """

    def __init__(self, config: ImageConfig, ids: ImageTokenIds) -> None:
        self.config = config
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
        """Return how an image of this many pixels is tiled, without having it.

        Raises:
            ImageError: the image is empty or too elongated.
            RequestError: a limit is out of range.
        """
        config = self.config.override(
            max_crops=max_crops, min_pixels=min_pixels, max_pixels=max_pixels
        )
        return plan_layout(height, width, config)

    def open(
        self,
        source: ImageSource,
        *,
        max_crops: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> OpenedImage:
        """Open an image and plan its tiles, without cutting them yet.

        Args:
            source: see `open_image`.
            max_crops: most tiles of the grid; None: the checkpoint's.
            min_pixels: area below which the image is enlarged first; None: the checkpoint's.
            max_pixels: area above which the image is reduced first; None: the checkpoint's.

        Raises:
            ImageError: the image cannot be opened, or has a size the model cannot take.
            RequestError: a limit is out of range.
        """
        config = self.config.override(
            max_crops=max_crops, min_pixels=min_pixels, max_pixels=max_pixels
        )
        image = open_image(source)
        return OpenedImage(
            name=source_name(source),
            image=image,
            config=config,
            token_ids=self.ids,
            layout=plan_layout(image.height, image.width, config),
        )

    def __call__(
        self,
        source: ImageSource,
        *,
        max_crops: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> ProcessedImage:
        """Open an image and cut it into tiles; arguments and errors as `open`."""
        opened = self.open(
            source, max_crops=max_crops, min_pixels=min_pixels, max_pixels=max_pixels
        )
        return opened.cut()
