"""The image processor: from an image to everything the model and the prompt need of it."""

import dataclasses
import hashlib
import threading
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..config.image_config import ImageConfig, ImageOptions
from ..errors import ImageError
from .documents import expand
from .image_digests import ImageDigests
from .image_io import ImageData, ImageSource, read_image
from .image_tokens import ImageTokenIds, IndexMaps, index_maps
from .sources import DEFAULT_LIMITS, SourceLimits
from .tiles import cut_tiles, resize_source
from .tiling import ImageLayout, plan_layout


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
    """(T, W) index in `image_tokens` of the token of each pooled window; -1 if it has none."""
    image_masks: NDArray[np.int8]
    """(T, P) 1, and -1 in the last tile."""

    def cut(self) -> "ProcessedImage":
        """Return itself, so that it can be placed in a prompt like an image."""
        return self


class PromptImage:
    """What a prompt and its caches must know of an image, opened or encoded.

    Subclasses are frozen dataclasses that have the attributes declared here.
    """

    if TYPE_CHECKING:

        @property
        def name(self) -> str:
            """What messages call it."""

        @property
        def digest(self) -> str:
            """The same for the same pixels under the same config, and for nothing else."""

        @property
        def config(self) -> ImageConfig:
            """With the options of the request applied."""

        @property
        def token_ids(self) -> ImageTokenIds:
            """Of the checkpoint that it was opened for."""

        @property
        def layout(self) -> ImageLayout:
            """How it is tiled."""

    @property
    def index_maps(self) -> IndexMaps:
        """Its tokens, which window belongs to which of them, and the mask of its patches."""
        return index_maps(self.layout, self.config, self.token_ids)

    @property
    def image_tokens(self) -> NDArray[np.int64]:
        """(N,) the tokens that replace its placeholder in the prompt."""
        return self.index_maps.tokens

    @property
    def window_positions(self) -> NDArray[np.int64]:
        """(T, W) index in `image_tokens` of the token of each pooled window; -1: none."""
        return self.index_maps.window_positions

    def check_config(
        self, config: ImageConfig, token_ids: ImageTokenIds, options: ImageOptions
    ) -> None:
        """Refuse an image that was cut in another way than a request wants.

        Args:
            config: of the checkpoint in use.
            token_ids: of the checkpoint in use.
            options: of the request; None takes the image as it is.

        Raises:
            ImageError: names the first difference.
        """
        of_request = dataclasses.asdict(options)
        for field in dataclasses.fields(ImageConfig):
            expected = of_request.get(field.name, getattr(config, field.name))
            found = getattr(self.config, field.name)
            if expected is not None and found != expected:
                raise ImageError(
                    f"{self.name} was encoded with {field.name} {found}, not {expected};"
                    " encode it again with the config in use"
                )
        if self.token_ids != token_ids:
            raise ImageError(
                f"{self.name} was encoded for other image tokens ({self.token_ids});"
                " encode it again with the processor in use"
            )

    def load(self) -> None:
        """Decode it, if that has not been done yet.

        Raises:
            ImageError: it is damaged.
        """

    def cut(self) -> ProcessedImage:
        """Cut it into tiles.

        Raises:
            ImageError: it is damaged, or its pixels are gone.
        """
        raise ImageError(f"{self.name} is encoded already; give the image itself")


@dataclass(frozen=True, eq=False)
class OpenedImage(PromptImage):
    """An image whose size is known; its pixels are decoded when they are first needed."""

    name: str
    config: ImageConfig
    token_ids: ImageTokenIds
    layout: ImageLayout
    source: ImageData
    known: ImageDigests | None = None
    """What was opened before; a file that is found there is not decoded for its digest."""

    @cached_property
    def resized(self) -> tuple[NDArray[Any], ...]:
        """The arrays that all tiles are made of, see `resize_source`: a few MB of any image.

        Raises:
            ImageError: the image is damaged.
        """
        resized = self._resize(self.source.decode())
        recognized = self.__dict__.get("digest")
        if recognized is not None and self._digest(resized) != recognized:
            raise self._changed()
        return resized

    def load(self) -> None:
        """Decode and resize it, if it is not known and that has not been done yet.

        Raises:
            ImageError: as `resized`, or its file cannot be read.
        """
        if self.known is not None and self.source.file is not None:
            self.digest  # noqa: B018 - computed once
        else:
            self.resized  # noqa: B018 - computed once

    @cached_property
    def digest(self) -> str:
        """Hash of the resized pixels and of everything that decides what becomes of them."""
        file = self.source.file
        if self.known is None or file is None or "resized" in self.__dict__:
            return self._digest(self.resized)
        contents = file.read()
        made_from = hashlib.sha256(repr((file.frame, self._settings)).encode())
        made_from.update(contents)
        digest = self.known.get(made_from.hexdigest())
        if digest is None:
            # From the very bytes that were hashed: a file may change at any time.
            resized = self._resize(file.decode(contents))
            digest = self._digest(resized)
            self.__dict__["resized"] = resized
            self.known.put(made_from.hexdigest(), digest)
        return digest

    @property
    def _settings(self) -> tuple[Any, ...]:
        return self.layout, self.config, self.token_ids

    def _digest(self, resized: tuple[NDArray[Any], ...]) -> str:
        digest = hashlib.sha256(repr(self._settings).encode())
        for array in resized:
            digest.update(array.data)
        return digest.hexdigest()

    def _resize(self, image: Image.Image) -> tuple[NDArray[Any], ...]:
        if image.size != self.source.size:
            raise self._changed()
        return resize_source(image, self.layout, self.config)

    def _changed(self) -> ImageError:
        return ImageError(f"{self.name} has changed since it was opened; open it again")

    def cut(self) -> ProcessedImage:
        """Cut it into tiles."""
        maps = self.index_maps
        return ProcessedImage(
            layout=self.layout,
            pixel_values=cut_tiles(self.resized, self.layout, self.config),
            image_tokens=maps.tokens,
            window_positions=maps.window_positions,
            image_masks=maps.masks,
        )


class ImageProcessor:
    """Does what the reference implementation's image processor does, to the last bit.

    May be called from any thread.
    """

    def __init__(self, config: ImageConfig, ids: ImageTokenIds) -> None:
        self.config = config
        self.ids = ids

    def layout(
        self, width: int, height: int, options: ImageOptions | None = None, **overrides: Any
    ) -> ImageLayout:
        """Return how an image of this many pixels is tiled, without having it.

        Args:
            width: in pixels.
            height: in pixels.
            options: of the request; None: the checkpoint's.
            **overrides: single options by name, see `ImageOptions`.

        Raises:
            ImageError: the image is empty or too elongated.
            RequestError: an option is out of range.
        """
        config = self.config.override(ImageOptions.of(options, overrides))
        return plan_layout(height, width, config)

    def expand(
        self,
        source: ImageSource | PromptImage,
        options: ImageOptions | None = None,
        limits: SourceLimits = DEFAULT_LIMITS,
        cancel: threading.Event | None = None,
    ) -> list[Any]:
        """Return the pages or frames that a source names, or the source alone; as `expand`."""
        if isinstance(source, PromptImage):
            return [source]
        config = self.config.override(options or ImageOptions())
        return expand(source, limits, cancel, config.max_pixels)

    def open(
        self,
        source: ImageSource | PromptImage,
        options: ImageOptions | None = None,
        limits: SourceLimits = DEFAULT_LIMITS,
        cancel: threading.Event | None = None,
        known: ImageDigests | None = None,
    ) -> PromptImage:
        """Read an image's size and plan its tiles; its pixels are decoded later.

        Args:
            source: see `read_image`; or an image that has been opened or encoded already.
            options: of the request; None: the checkpoint's.
            limits: of size and time.
            cancel: ends a download when it is set.
            known: images that were opened before, to which this one is added.

        Raises:
            ImageError: the image cannot be opened, has a size the model cannot take, or was
                opened or encoded with another config.
            RequestError: an option contradicts the checkpoint's, or `cancel` is set.
        """
        options = options or ImageOptions()
        if isinstance(source, PromptImage):
            source.check_config(self.config, self.ids, options)
            return source
        config = self.config.override(options)
        data = read_image(source, limits, cancel)
        width, height = data.size
        opened = OpenedImage(
            name=data.name,
            config=config,
            token_ids=self.ids,
            layout=plan_layout(height, width, config),
            source=data,
            known=known,
        )
        if data.is_borrowed:
            opened.load()  # before its owner changes it
        return opened

    def __call__(
        self, source: ImageSource, options: ImageOptions | None = None, **overrides: Any
    ) -> ProcessedImage:
        """Open an image and cut it into tiles.

        Args:
            source: see `read_image`.
            options: of the request; None: the checkpoint's.
            **overrides: single options by name, see `ImageOptions`.

        Raises:
            ImageError: the image cannot be opened or has a size the model cannot take.
            RequestError: an option is out of range.
        """
        return self.open(source, ImageOptions.of(options, overrides)).cut()
