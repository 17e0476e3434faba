"""Images of a request: opened, cut ahead of the device, and encoded a group of tiles at a time."""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import mlx.core as mx

from ..config.image_config import ImageConfig, ImageOptions
from ..errors import ImageError
from ..model import Model
from ..model.model import TILE_GROUP_SIZE
from ..processing.image_processor import ProcessedImage, PromptImage
from ..processing.image_tokens import ImageTokenIds
from ..processing.processor import Processor
from ..processing.tiling import ImageLayout
from ..progress import Progress, ProgressEvent, no_progress
from . import device
from .caches import GenerationCaches
from .finiteness import Overflow, widen
from .memory import WiredBytes, keep_wired
from .model_identity import model_key

logger = logging.getLogger(__name__)

CPU_TILE_GROUP_SIZE = 1
"""Most tiles at once on a CPU, which one tile fills: more would only take longer to stop."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class EncodedImage(PromptImage):
    """An image's features with everything a prompt must know of it. Made by `encode_image`.

    It may be used wherever an image may, from any thread, as often as wanted, with the model
    that it was made with.
    """

    name: str
    """What messages call it."""
    digest: str
    """Of its pixels and config."""
    model: str
    """Key of the model that encoded it, see `model_key`."""
    config: ImageConfig
    """How it was tiled, options of the request included."""
    token_ids: ImageTokenIds
    layout: ImageLayout
    features: mx.array
    """(N, hidden_size) one for each patch token, evaluated; ordered by tile and window."""

    @property
    def nbytes(self) -> int:
        """Device memory of the features."""
        return self.features.nbytes

    def check_model(self, key: str) -> None:
        """Refuse an image of another model.

        Raises:
            ImageError: says so.
        """
        if self.model != key:
            raise ImageError(
                f"{self.name} was encoded by another model; encode it again with the model in use"
            )


class InBackground(Generic[T]):
    """A function that runs in a thread of its own until its result is asked for."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._results: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()
        threading.Thread(target=self._run, args=(function,), daemon=True).start()

    def _run(self, function: Callable[[], T]) -> None:
        try:
            self._results.put((function(), None))
        except BaseException as error:
            self._results.put((None, error))

    @property
    def done(self) -> bool:
        """Whether the result is there."""
        return not self._results.empty()

    def result(self) -> T:
        """Wait for the result; only once. Raises what the function raised."""
        value, error = self._results.get()
        if error is not None:
            raise error
        return value  # type: ignore[return-value]


def one_ahead(functions: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Yield the results in order. While the caller works with one, the next is computed."""
    following: InBackground[T] | None = None
    for function in functions:
        if following is None:
            following = InBackground(function)
            continue
        result = following.result()
        following = InBackground(function)
        yield result
        del result  # only two are held at a time
    if following is not None:
        yield following.result()


def encode_opened_images(
    model: Model,
    images: list[PromptImage],
    caches: GenerationCaches | None,
    tile_group_size: int,
    progress: Progress,
    check: Callable[[], None],
) -> list[mx.array]:
    """Return the features (N, hidden_size) of each image, from the cache where it has them.

    Args:
        model: the model.
        images: opened or encoded.
        caches: searched first and added to; or None.
        tile_group_size: most tiles in the tower at once.
        progress: called with `tiles`, if any must be encoded.
        check: called before each group of tiles; may raise.
    """
    # Looked up once, for that takes milliseconds; encoding does not change it.
    is_needed = not all(isinstance(one, EncodedImage) for one in images)
    key = caches.key(model) if caches is not None and is_needed else ""
    features: list[mx.array | None] = []
    for image in images:
        if isinstance(image, EncodedImage):
            features.append(image.features)
        elif caches is None:
            features.append(None)
        else:
            features.append(caches.features.get(key, image.digest))
    missing = {index: image for index, image in enumerate(images) if features[index] is None}
    done, total = 0, sum(image.layout.num_tiles for image in missing.values())
    if missing:
        progress(ProgressEvent("tiles", 0, total, "tile"))
        check()

    def on_group(tiles: int) -> None:
        nonlocal done
        done += tiles
        progress(ProgressEvent("tiles", done, total, "tile"))
        check()

    # A single image has nothing to be cut ahead of.
    cutting = [image.cut for image in missing.values()]
    processed = one_ahead(cutting) if len(cutting) > 1 else (cut() for cut in cutting)
    for (index, image), tiles in zip(missing.items(), processed, strict=True):
        encoded = encode_tiles(model, tiles, tile_group_size, on_group)
        features[index] = encoded
        if caches is not None:
            caches.features.put(key, image.digest, encoded)
    return [one for one in features if one is not None]


def encode_tiles(
    model: Model,
    image: ProcessedImage,
    tile_group_size: int,
    on_group: Callable[[int], None] = lambda _: None,
) -> mx.array:
    """Send an image through tower and connector, one group of tiles after the other.

    It goes alone, so its features are the same to the last bit in any batch. If
    they overflow float16, tower and connector change to bfloat16, and it goes once more.

    Args:
        model: the model.
        image: cut into tiles.
        tile_group_size: most tiles at once.
        on_group: called after each group with how many tiles it had.

    Returns:
        (N, hidden_size) evaluated; ordered by tile and window.

    Raises:
        CheckpointError: the features are not finite in a wider type either.
    """
    if mx.default_device().type == mx.cpu:
        tile_group_size = min(tile_group_size, CPU_TILE_GROUP_SIZE)
    plan = model.plan(image.window_positions[None], len(image.image_tokens), tile_group_size)

    def encode() -> mx.array:
        groups = model.encode_groups(image.pixel_values[None], image.image_masks[None], plan)
        features: list[mx.array] = []

        def next_group() -> None:
            group = next(groups)
            finite = mx.all(mx.isfinite(group))
            mx.eval(group, finite)  # together, so the check costs no wait
            if not finite.item():
                raise Overflow
            features.append(group)

        for group in plan.groups:
            device.run(next_group)
            on_group(len(group.tiles))
        return device.run(partial(_joined, features))

    while True:
        try:
            return encode()
        except Overflow:
            device.run(partial(widen, model, "vision_tower", "connector"))  # raises the next time
            on_group = _ignore


def _ignore(_: int) -> None:
    """Tiles that go once more have been counted."""


def _joined(features: list[mx.array]) -> mx.array:
    joined = mx.concatenate(features)
    mx.eval(joined)
    return joined


def encode_image(
    model: Model,
    processor: Processor,
    source: Any,
    *,
    caches: GenerationCaches | None = None,
    progress: Progress | None = None,
    tile_group_size: int = TILE_GROUP_SIZE,
    max_crops: int | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    do_resize: bool | None = None,
) -> EncodedImage:
    """Encode an image once, for any number of questions.

    What is returned may be used wherever an image may, from any thread.

    Args:
        model: from `load`.
        processor: from `load`.
        source: of any kind a question takes.
        caches: searched for the image first, and added to.
        progress: called with how many `tiles` are done.
        tile_group_size: most tiles in the vision tower at once.
        max_crops: most tiles beside the thumbnail; None: the checkpoint's.
        min_pixels: area below which the image is enlarged; None: the checkpoint's.
        max_pixels: area above which the image is reduced; None: the checkpoint's.
        do_resize: whether it is first brought to whole patches; None: the checkpoint's.

    Raises:
        ImageError: the image cannot be opened or has a size the model cannot take.
        RequestError: a limit is out of range.
    """
    device.take_over(model)
    options = ImageOptions(
        max_crops=max_crops, min_pixels=min_pixels, max_pixels=max_pixels, do_resize=do_resize
    )
    image = processor.image_processor.open(source, options)
    return encode_opened_image(
        model, image, caches, tile_group_size, progress or no_progress, lambda: None
    )


def encode_opened_image(
    model: Model,
    image: PromptImage,
    caches: GenerationCaches | None,
    tile_group_size: int,
    progress: Progress,
    check: Callable[[], None],
    wired: WiredBytes = None,
) -> EncodedImage:
    """Encode an opened image; arguments as `encode_opened_images` and `keep_wired`.

    Raises:
        ImageError: it was encoded by another model.
    """
    if isinstance(image, EncodedImage):
        image.check_model(model_key(model))
        return image
    with keep_wired(wired):
        (features,) = encode_opened_images(model, [image], caches, tile_group_size, progress, check)
    return EncodedImage(
        name=image.name,
        digest=image.digest,
        model=model_key(model),
        config=image.config,
        token_ids=image.token_ids,
        layout=image.layout,
        features=features,
    )
