"""Images of rows, ready for the model, and kept in memory up to a limit."""

import threading
from functools import lru_cache

from ..errors import DataError, ImageError
from ..processing.image_io import open_image
from ..processing.image_processor import ProcessedImage
from ..processing.image_tokens import image_mask, image_tokens, window_positions
from ..processing.processor import Processor
from ..processing.sources import source_name
from ..processing.tiles import cut_tiles, resize_source
from ..processing.tiling import ImageLayout
from .data_limits import DataLimits
from .prepared_examples import ExampleImage

_KEPT_LAYOUTS = 256


class ImageStore:
    """Opens and cuts images as the image processor does. May be called from any thread.

    What follows from the size alone is worked out once for each size: for small images it is
    half of the work.
    """

    def __init__(self, processor: Processor, limits: DataLimits, cache_bytes: int) -> None:
        """Open a store.

        Args:
            processor: of the checkpoint.
            limits: that the images were planned with.
            cache_bytes: bytes of pixels that may be kept; 0: none. Whatever came first stays:
                every image comes once before any comes again, so the last used is no better.

        Raises:
            RequestError: a limit is out of range.
        """
        config = processor.image_processor.config.override(limits.of_images)
        self._settings = config
        self._capacity = cache_bytes
        self._kept: dict[str, ProcessedImage] = {}
        self._bytes = 0
        self._lock = threading.Lock()

        @lru_cache(_KEPT_LAYOUTS)
        def maps(layout: ImageLayout) -> tuple:
            return (
                image_tokens(layout, config, processor.image_processor.ids),
                window_positions(layout, config),
                image_mask(layout, config),
            )

        self._maps = maps

    @property
    def bytes_kept(self) -> int:
        """Bytes of pixels kept."""
        return self._bytes

    def image(self, image: ExampleImage) -> ProcessedImage:
        """Return an image in tiles.

        Raises:
            DataError: it is damaged, or not the one that was checked.
        """
        kept = self._kept.get(image.source)
        if kept is not None:
            return kept
        try:
            opened = open_image(image.source)
        except ImageError as error:
            raise DataError(str(error)) from error
        if opened.size != image.size:
            raise DataError(
                f"image {source_name(image.source)} has {opened.width} x {opened.height}"
                f" pixels, and had {image.size[0]} x {image.size[1]} when it was checked; start"
                " again, or save it anew if its file has not changed"
            )
        tokens, positions, mask = self._maps(image.layout)
        processed = ProcessedImage(
            layout=image.layout,
            pixel_values=cut_tiles(
                resize_source(opened, image.layout, self._settings), image.layout, self._settings
            ),
            image_tokens=tokens,
            window_positions=positions,
            image_masks=mask,
        )
        size = processed.pixel_values.nbytes
        with self._lock:
            if self._bytes + size <= self._capacity and image.source not in self._kept:
                self._kept[image.source] = processed
                self._bytes += size
        return processed
