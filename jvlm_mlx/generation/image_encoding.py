"""Images of a request: opened, and encoded when their turn comes."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from ..config.image_config import ImageOptions
from ..model import Model
from ..model.model import TILE_GROUP_SIZE
from ..processing.image_processor import PromptImage
from ..processing.processor import Processor
from ..progress import Progress, ProgressEvent, no_progress
from .caches import GenerationCaches
from .encoded_image import EncodedImage
from .fingerprint import fingerprint
from .memory import device_turns, wired_limit


def encode_tiles(
    model: Model, opened: PromptImage, tile_group_size: int, on_group: Callable[[int], None]
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
    do_resize: bool | None = None,
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
        do_resize: whether it is first brought to whole patches; None: the checkpoint's.

    Raises:
        ImageError: the image cannot be opened or has a size the model cannot take.
        RequestError: a limit is out of range.
    """
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
