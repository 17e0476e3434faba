"""Rows as the arrays that training takes: padded on the right, so that causal attention needs no
mask."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..processing.inputs import DROPPED, PADDING, Row, place_images
from ..processing.opened_image import ProcessedImage
from .encoding import NOTHING
from .prepared_examples import TrainingRow


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """One batch, as arrays of the host.

    B rows, L tokens, T tiles of the row with most, P patches, V values of a patch, W windows.
    """

    input_ids: NDArray[np.int32]
    """(B, L) tokens; the shorter rows go on with the end of text, which no label follows."""
    labels: NDArray[np.int32]
    """(B, L) the token to be predicted in this place, from the ones before it; -1: nothing.

    It is the token of `input_ids`, but for one case: where the chat template writes no stop token
    behind an answer and the conversation goes on, the label is the stop token.
    """
    loss_mask: NDArray[np.bool_]
    """(B, L) where a label is to be learned."""
    pixel_values: NDArray[np.float32] | None
    """(B, T, P, V) tiles of all images of a row one after the other; missing tiles are -1.
    None if no row has an image."""
    image_masks: NDArray[np.int8] | None
    """(B, T, P) as in `ModelInputs`."""
    image_input_idx: NDArray[np.int32] | None
    """(B, T, W) where in L a window's feature goes; negative if it is dropped."""
    sources: tuple[str, ...]
    """Name of each row's source."""
    num_tokens: int
    """Tokens without padding."""
    num_targets: int
    """Tokens to be learned."""


def expand(
    row: TrainingRow, images: Sequence[ProcessedImage], image_token: int
) -> tuple[Row, NDArray[np.int32]]:
    """Put the tokens of images in place of their placeholders.

    Returns:
        The row, and its labels (L,).
    """
    tokens, starts = place_images(
        row.token_ids, [image.image_tokens for image in images], image_token
    )
    repeats = np.ones(len(row.token_ids), np.int64)
    repeats[row.token_ids == image_token] = [len(image.image_tokens) for image in images]
    return Row(tokens, starts, tuple(images)), np.repeat(row.labels, repeats)


def collate_right(
    rows: Sequence[Row],
    labels: Sequence[NDArray[np.int32]],
    sources: Sequence[str],
    *,
    padding_token: int,
    pad_to_multiple: int,
) -> TrainingBatch:
    """Pad rows to one another: tokens on the right, tiles at the end.

    Args:
        rows: with their images put in.
        labels: (L,) of each row.
        sources: name of each row's source.
        padding_token: what stands behind the end of a row.
        pad_to_multiple: what L is made a multiple of.
    """
    longest = max(len(row.input_ids) for row in rows)
    length = -(-longest // pad_to_multiple) * pad_to_multiple
    input_ids = np.full((len(rows), length), padding_token, np.int32)  # (B, L)
    all_labels = np.full((len(rows), length), NOTHING, np.int32)  # (B, L)
    for place, (row, labels_of_row) in enumerate(zip(rows, labels, strict=True)):
        input_ids[place, : len(row.input_ids)] = row.input_ids
        all_labels[place, : len(labels_of_row)] = labels_of_row
    loss_mask = all_labels != NOTHING
    pixel_values = image_masks = image_input_idx = None
    if any(row.images for row in rows):
        pixel_values = _stack([[one.pixel_values for one in row.images] for row in rows], PADDING)
        image_masks = _stack([[one.image_masks for one in row.images] for row in rows], PADDING)
        image_input_idx = _stack([row.positions for row in rows], DROPPED)
    return TrainingBatch(
        input_ids=input_ids,
        labels=all_labels,
        loss_mask=loss_mask,
        pixel_values=pixel_values,
        image_masks=image_masks,
        image_input_idx=image_input_idx,
        sources=tuple(sources),
        num_tokens=sum(len(row.input_ids) for row in rows),
        num_targets=int(np.count_nonzero(loss_mask)),
    )


def _stack(rows: list[list[NDArray[Any]]], missing: int) -> NDArray[Any]:
    """Join each row's arrays (t, ...) to (B, T, ...), filled up with `missing`."""
    tiles = max(sum(map(len, row)) for row in rows)
    example = next(array for row in rows for array in row)
    stacked = np.empty((len(rows), tiles, *example.shape[1:]), example.dtype)
    for place, row in enumerate(rows):
        start = 0
        for array in row:
            stacked[place, start : start + len(array)] = array
            start += len(array)
        stacked[place, start:] = missing
    return stacked
