"""The image processor: from a picture to everything the model and the prompt need of it."""

from ..config.image_config import ImageSettings
from .opened_image import OpenedImage, ProcessedImage
from .image_io import ImageSource, open_image, source_name
from .tiling import ImageLayout, plan_layout
from .image_tokens import ImageTokenIds


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

    def open(
        self,
        source: ImageSource,
        *,
        max_crops: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> OpenedImage:
        """Open a picture and plan its tiles, without cutting them yet.

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
        return OpenedImage(
            name=source_name(source),
            picture=picture,
            settings=settings,
            token_ids=self.ids,
            layout=plan_layout(picture.height, picture.width, settings),
        )

    def __call__(
        self,
        source: ImageSource,
        *,
        max_crops: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> ProcessedImage:
        """Open a picture and cut it into tiles; arguments and errors as `open`."""
        opened = self.open(
            source, max_crops=max_crops, min_pixels=min_pixels, max_pixels=max_pixels
        )
        return opened.cut()
