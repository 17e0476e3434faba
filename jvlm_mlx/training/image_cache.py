"""Pictures of rows, ready for the model, and kept in memory up to a limit."""

import threading
from functools import lru_cache

from ..errors import DataError, ImageError
from ..processing.opened_image import ProcessedImage
from ..processing.image_io import open_image, source_name
from ..processing.tiles import cut_tiles
from ..processing.tiling import ImageLayout
from ..processing.image_tokens import image_mask, image_tokens, window_positions
from ..processing.processor import Processor
from .data_limits import DataLimits
from .prepared_examples import Picture

_KEPT_LAYOUTS = 256


class PictureStore:
    """Opens and cuts pictures as the image processor does. May be called from any thread.

    What follows from the size alone is worked out once for each size: for small pictures it is
    half of the work.
    """

    def __init__(self, processor: Processor, limits: DataLimits, cache_bytes: int) -> None:
        """Open a store.

        Args:
            processor: of the checkpoint.
            limits: that the pictures were planned with.
            cache_bytes: bytes of pixels that may be kept; 0: none. Whatever came first stays:
                every picture comes once before any comes again, so the last used is no better.

        Raises:
            RequestError: a limit is out of range.
        """
        settings = processor.image_processor.settings.override(**limits.of_pictures)
        self._settings = settings
        self._capacity = cache_bytes
        self._kept: dict[str, ProcessedImage] = {}
        self._bytes = 0
        self._lock = threading.Lock()

        @lru_cache(_KEPT_LAYOUTS)
        def maps(layout: ImageLayout) -> tuple:
            return (
                image_tokens(layout, settings, processor.image_processor.ids),
                window_positions(layout, settings),
                image_mask(layout, settings),
            )

        self._maps = maps

    @property
    def bytes_kept(self) -> int:
        """Bytes of pixels kept."""
        return self._bytes

    def image(self, picture: Picture) -> ProcessedImage:
        """Return a picture in tiles.

        Raises:
            DataError: it is damaged, or not the one that was checked.
        """
        kept = self._kept.get(picture.source)
        if kept is not None:
            return kept
        try:
            opened = open_image(picture.source)
        except ImageError as error:
            raise DataError(str(error)) from error
        if opened.size != picture.size:
            raise DataError(
                f"picture {source_name(picture.source)} has {opened.width} x {opened.height}"
                f" pixels, and had {picture.size[0]} x {picture.size[1]} when it was checked; start"
                " again, or save it anew if its file has not changed"
            )
        tokens, positions, mask = self._maps(picture.layout)
        image = ProcessedImage(
            layout=picture.layout,
            pixel_values=cut_tiles(opened, picture.layout, self._settings),
            image_tokens=tokens,
            window_positions=positions,
            image_masks=mask,
        )
        size = image.pixel_values.nbytes
        with self._lock:
            if self._bytes + size <= self._capacity and picture.source not in self._kept:
                self._kept[picture.source] = image
                self._bytes += size
        return image
