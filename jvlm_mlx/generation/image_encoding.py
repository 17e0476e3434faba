"""Images of a request: opened, and encoded when their turn comes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from PIL import Image

from ..model import Model
from ..model.model import TILE_GROUP_SIZE
from ..processing.image_tokens import window_positions
from ..processing.opened_image import OpenedImage
from ..processing.processor import Processor
from ..progress import Progress, ProgressEvent, no_progress
from .caches import GenerationCaches
from .encoded_image import EncodedImage
from .fingerprint import fingerprint
from .memory import device_turns, wired_limit
from .options import ImageLimits

PromptImage = OpenedImage | EncodedImage


def open_prompt_image(processor: Processor, source: Any, limits: ImageLimits) -> PromptImage:
    """Open an image, or check one that has been encoded already.

    Raises:
        ImageError: it cannot be opened, or was encoded with other config.
    """
    images = processor.image_processor
    if isinstance(source, OpenedImage):
        return source
    if isinstance(source, EncodedImage):
        source.check_config(images.config, images.ids, **limits)
        return source
    opened = images.open(source, **limits)
    if isinstance(source, Image.Image) or hasattr(source, "__array__"):
        # It belongs to the caller, who may change it before it is cut.
        opened = dataclasses.replace(opened, image=opened.image.copy())
    return opened


def patch_token_offsets(image: PromptImage) -> npt.NDArray[np.intp]:
    """Return where the token of each feature stands, from the image's first token: (N,)."""
    positions = window_positions(image.layout, image.config)  # (T, W)
    return positions[positions >= 0]


def encode_tiles(
    model: Model, opened: OpenedImage, tile_group_size: int, on_group: Callable[[int], None]
) -> mx.array:
    """Send a opened through tower and connector, one group of tiles after the other.

    It goes alone, so its features are the same to the last bit whatever stands beside it.

    Args:
        model: the model.
        opened: to be cut and encoded.
        tile_group_size: most tiles at once.
        on_group: told, after each group, how many tiles it had.

    Returns:
        (N, hidden_size) evaluated; ordered by tile and window.
    """
    image = opened.cut()
    plan = model.plan(image.window_positions[None], opened.layout.num_tokens, tile_group_size)
    groups = model.encode_groups(image.pixel_values[None], image.image_masks[None], plan)
    features = []
    for group in plan.groups:
        with device_turns:
            features.append(next(groups))
            mx.eval(features[-1])
        on_group(len(group.tiles))
    with device_turns:
        joined = mx.concatenate(features)
        mx.eval(joined)
    return joined


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
        progress: told about `tiles`, if any must be encoded.
        check: called before each group of tiles; may raise.
    """
    features: list[mx.array | None] = []
    for image in images:
        if isinstance(image, EncodedImage):
            features.append(image.features)
        elif caches is None:
            features.append(None)
        else:
            features.append(caches.features.get(model_of(model), image.digest))
    missing = [place for place, known in enumerate(features) if known is None]
    done, total = 0, sum(images[place].layout.num_tiles for place in missing)
    if missing:
        progress(ProgressEvent("tiles", 0, total, "tile"))
        check()

    def on_group(tiles: int) -> None:
        nonlocal done
        done += tiles
        progress(ProgressEvent("tiles", done, total, "tile"))
        check()

    for place in missing:
        image = images[place]
        assert isinstance(image, OpenedImage)
        encoded = encode_tiles(model, image, tile_group_size, on_group)
        features[place] = encoded
        if caches is not None:
            caches.features.put(model_of(model), image.digest, encoded)
    return [one for one in features if one is not None]


def model_of(model: Model) -> str:
    """Return the model's fingerprint, in this thread's turn on the device."""
    with device_turns:
        return fingerprint(model)


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
) -> EncodedImage:
    """Encode an image once, for any number of questions.

    What is returned may be used wherever an image may, from any thread.

    Args:
        model: from `load`.
        processor: from `load`.
        source: of any kind a question takes.
        caches: searched for the image first, and added to.
        progress: told how many `tiles` are done.
        tile_group_size: most tiles in the vision tower at once.
        max_crops: most tiles beside the thumbnail; None: the checkpoint's.
        min_pixels: area below which the image is enlarged; None: the checkpoint's.
        max_pixels: area above which the image is reduced; None: the checkpoint's.

    Raises:
        ImageError: the image cannot be opened or has a size the model cannot take.
        RequestError: a limit is out of range.
    """
    limits = ImageLimits(max_crops=max_crops, min_pixels=min_pixels, max_pixels=max_pixels)
    image = open_prompt_image(processor, source, limits)
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
) -> EncodedImage:
    """Encode an opened image; arguments as `encode_opened_images`.

    Raises:
        ImageError: it was encoded by another model.
    """
    if isinstance(image, EncodedImage):
        image.check_model(model_of(model))
        return image
    with wired_limit():
        (features,) = encode_opened_images(model, [image], caches, tile_group_size, progress, check)
    return EncodedImage(
        name=image.name,
        digest=image.digest,
        model=model_of(model),
        config=image.config,
        token_ids=image.token_ids,
        layout=image.layout,
        features=features,
    )
