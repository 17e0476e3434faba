"""Prompts with their images as the arrays that the model takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .opened_image import ProcessedImage
from .tiling import ImageLayout

PADDING = -1
"""Token id in front of the shorter rows of a batch; also every value of a tile that fills up
a row with fewer tiles."""
DROPPED = -1_000_000_000
"""Position of a window that has no patch token: far below 0, with any padding added."""

_MODEL_KEYWORDS = (
    "input_ids",
    "attention_mask",
    "pixel_values",
    "image_masks",
    "image_input_idx",
)


@dataclass(frozen=True, eq=False)
class ModelInputs:
    """What the model takes, as arrays of the host.

    They stay numpy on purpose: where the image features go is worked out from the indices,
    and on the host that needs no wait for the device.

    It is a mapping of the model's five keywords, so that `model(**inputs)` works.
    B rows, L tokens of the longest row, T tiles of the row with most, P patches of a tile,
    V values of a patch, W windows of a tile.
    """

    input_ids: NDArray[np.int32]
    """(B, L) token ids; -1 is padding, on the left."""
    attention_mask: NDArray[np.bool_]
    """(B, L) false on padding."""
    pixel_values: NDArray[np.float32] | None
    """(B, T, P, V) tiles of all images of a row one after the other; missing tiles are -1.
    None if no row has an image."""
    image_masks: NDArray[np.int8] | None
    """(B, T, P) 1, or -1 for the patches that get the connector's second padding vector."""
    image_input_idx: NDArray[np.int32] | None
    """(B, T, W) where in L a window's feature goes; negative if it is dropped."""
    layouts: tuple[tuple[ImageLayout, ...], ...]
    """For each row, how each of its images was tiled."""

    def keys(self) -> tuple[str, ...]:
        """The model's keywords."""
        return _MODEL_KEYWORDS

    def __getitem__(self, keyword: str) -> NDArray[Any] | None:
        """Return the array of one of the model's keywords."""
        if keyword not in _MODEL_KEYWORDS:
            raise KeyError(keyword)
        array: NDArray[Any] | None = getattr(self, keyword)
        return array


@dataclass(frozen=True, eq=False)
class Row:
    """One prompt with its images, before it is padded to others."""

    input_ids: NDArray[np.int32]
    """(L,) all tokens, those of images included."""
    starts: tuple[int, ...]
    """Where each image's first token stands."""
    images: tuple[ProcessedImage, ...]

    @property
    def positions(self) -> list[NDArray[np.int32]]:
        """(T, W) for each image: where in the row each window's token stands."""
        return [
            np.where(image.window_positions < 0, DROPPED, image.window_positions + start).astype(
                np.int32
            )
            for image, start in zip(self.images, self.starts, strict=True)
        ]


def place_images(
    token_ids: NDArray[np.int32], images: Sequence[NDArray[np.int64]], image_token: int
) -> tuple[NDArray[np.int32], tuple[int, ...]]:
    """Put the tokens of images in place of their placeholders.

    Args:
        token_ids: (L,) BOS and a prompt with a placeholder for each image, or with none.
        images: (N,) tokens of each image.
        image_token: the placeholder. Without any, all images go between BOS and prompt.

    Returns:
        All tokens, and where each image's first one stands.
    """
    places = np.flatnonzero(token_ids == image_token)
    # What each image replaces: its placeholder, or nothing between BOS and text.
    if len(places):
        begins, ends = places, places + 1
    else:
        begins = ends = np.ones(len(images), dtype=np.intp)
    pieces: list[NDArray[np.int32]] = []
    starts = []
    length = taken = 0
    for tokens, begin, end in zip(images, begins, ends, strict=True):
        pieces += [token_ids[taken:begin], tokens.astype(np.int32)]
        starts.append(length + int(begin) - taken)
        length = starts[-1] + len(tokens)
        taken = int(end)
    return np.concatenate([*pieces, token_ids[taken:]]), tuple(starts)


def collate(rows: Sequence[Row]) -> ModelInputs:
    """Pad rows to one another: tokens on the left, tiles at the end."""
    length = max(len(row.input_ids) for row in rows)
    input_ids = np.full((len(rows), length), PADDING, dtype=np.int32)  # (B, L)
    attention_mask = np.zeros((len(rows), length), dtype=np.bool_)  # (B, L)
    for place, row in enumerate(rows):
        input_ids[place, length - len(row.input_ids) :] = row.input_ids
        attention_mask[place, length - len(row.input_ids) :] = True

    pixel_values = image_masks = image_input_idx = None
    if any(row.images for row in rows):
        pixel_values = _stack([[one.pixel_values for one in row.images] for row in rows], PADDING)
        image_masks = _stack([[one.image_masks for one in row.images] for row in rows], PADDING)
        image_input_idx = _stack([row.positions for row in rows], DROPPED)
        shifts = [length - len(row.input_ids) for row in rows]
        image_input_idx = image_input_idx + np.array(shifts, dtype=np.int32)[:, None, None]
    return ModelInputs(
        input_ids=input_ids,
        attention_mask=attention_mask,
        pixel_values=pixel_values,
        image_masks=image_masks,
        image_input_idx=image_input_idx,
        layouts=tuple(tuple(image.layout for image in row.images) for row in rows),
    )


def _stack(rows: list[list[NDArray[Any]]], missing: int) -> NDArray[Any]:
    """Join each row's arrays (T, ...) and fill up with `missing`; one array is not copied."""
    if len(rows) == 1 and len(rows[0]) == 1:
        return rows[0][0][None]
    tiles = max(sum(map(len, row)) for row in rows)
    example = next(array for row in rows for array in row)
    stacked = np.empty((len(rows), tiles, *example.shape[1:]), dtype=example.dtype)  # (B, T, ...)
    for place, row in enumerate(rows):
        start = 0
        for array in row:
            stacked[place, start : start + len(array)] = array
            start += len(array)
        stacked[place, start:] = missing
    return stacked
