"""Rows as the arrays that training takes: padded on the right, so that causal attention needs no
mask."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..processing.image_processor import ProcessedImage
from ..processing.inputs import PreparedPrompt, collate, place_images
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
) -> tuple[PreparedPrompt[ProcessedImage], NDArray[np.int32]]:
    """Put the tokens of images in place of their placeholders.

    Returns:
        The row as a prompt, and its labels (L,).
    """
    repeats = np.ones(len(row.token_ids), np.int64)
    repeats[row.token_ids == image_token] = [len(image.image_tokens) for image in images]
    return place_images(row.token_ids, images, image_token), np.repeat(row.labels, repeats)


def collate_right(
    rows: Sequence[PreparedPrompt[ProcessedImage]],
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
    inputs = collate(
        rows,
        padding_side="right",
        padding_token=padding_token,
        pad_to_multiple=pad_to_multiple,
    )
    all_labels = np.full(inputs.input_ids.shape, NOTHING, np.int32)  # (B, L)
    for place, labels_of_row in enumerate(labels):
        all_labels[place, : len(labels_of_row)] = labels_of_row
    loss_mask = all_labels != NOTHING
    return TrainingBatch(
        input_ids=inputs.input_ids,
        labels=all_labels,
        loss_mask=loss_mask,
        pixel_values=inputs.pixel_values,
        image_masks=inputs.image_masks,
        image_input_idx=inputs.image_input_idx,
        sources=tuple(sources),
        num_tokens=sum(len(row.token_ids) for row in rows),
        num_targets=int(np.count_nonzero(loss_mask)),
    )
