"""Prompts with their images as the arrays that the model takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..config.json_file import quoted
from ..errors import RequestError
from .image_processor import ProcessedImage
from .tiling import ImageLayout

PADDING = -1
"""Token id in front of the shorter prompts of a batch; also every value of a tile that fills up
a prompt with fewer tiles."""
DROPPED = -1_000_000_000
"""Position of a window that has no patch token: far below 0, with any padding added."""

_MODEL_KEYWORDS = (
    "input_ids",
    "attention_mask",
    "pixel_values",
    "image_masks",
    "image_input_idx",
)


class PlacedImage(Protocol):
    """What is needed of an image to place it in a prompt: opened, encoded or processed."""

    @property
    def layout(self) -> ImageLayout:
        """How it is tiled."""

    @property
    def image_tokens(self) -> NDArray[np.int64]:
        """(N,) the tokens that replace its placeholder in the prompt."""

    def cut(self) -> ProcessedImage:
        """Cut it into tiles, or raise an ImageError where its pixels are gone."""


I = TypeVar("I", bound=PlacedImage)  # noqa: E741


@dataclass(frozen=True, eq=False)
class ModelInputs:
    """What the model takes, as arrays of numpy or, on request, of MLX.

    They stay numpy by default: where the image features go is worked out from the indices, and
    on the host that needs no wait for the device.

    It is a mapping of the model's five keywords, so that `model(**inputs)` works.
    B prompts, L tokens of the longest, T tiles of the prompt with most, P patches of a tile,
    V values of a patch, W windows of a tile.
    """

    input_ids: Any
    """(B, L) int32 token ids; -1 is padding."""
    attention_mask: Any
    """(B, L) bool, false on padding."""
    pixel_values: Any
    """(B, T, P, V) float32 tiles of all images of a prompt one after the other; missing tiles
    are -1. None if no prompt has an image."""
    image_masks: Any
    """(B, T, P) int8: 1, or -1 for the patches that get the connector's second padding vector."""
    image_input_idx: Any
    """(B, T, W) int32: where in L a window's feature goes; negative if it is dropped."""
    layouts: tuple[tuple[ImageLayout, ...], ...]
    """For each prompt, how each of its images was tiled."""

    @property
    def images(self) -> Any:
        """The reference implementation's name of `pixel_values`."""
        return self.pixel_values

    def keys(self) -> tuple[str, ...]:
        """The model's keywords."""
        return _MODEL_KEYWORDS

    def __getitem__(self, keyword: str) -> Any:
        """Return one of the model's arguments, or None; `images` is an alias."""
        if keyword not in (*_MODEL_KEYWORDS, "images"):
            raise KeyError(keyword)
        return getattr(self, keyword)

    def to(self, return_tensors: str | None) -> "ModelInputs":
        """Return the same inputs as arrays of another library: `np` or `mlx`.

        Raises:
            RequestError: of any other library.
        """
        if return_tensors in (None, "np"):
            return self
        if return_tensors != "mlx":
            raise RequestError(
                f"return_tensors is {quoted(return_tensors)}; expected 'mlx' or 'np'"
            )
        arrays = {
            keyword: None if self[keyword] is None else mx.array(self[keyword])
            for keyword in _MODEL_KEYWORDS
        }
        return ModelInputs(**arrays, layouts=self.layouts)


@dataclass(frozen=True, eq=False)
class PreparedPrompt(Generic[I]):
    """One prompt with its images, before it is padded to others."""

    token_ids: NDArray[np.int32]
    """(L,) all tokens, those of images included."""
    starts: tuple[int, ...]
    """Position of each image's first token."""
    images: tuple[I, ...]
    """In the order of the prompt."""

    @property
    def tiles(self) -> tuple[int, ...]:
        """Tiles of each image."""
        return tuple(image.layout.num_tiles for image in self.images)

    @property
    def image_tokens(self) -> int:
        """Tokens that represent images."""
        return sum(image.layout.num_tokens for image in self.images)

    @property
    def inputs(self) -> ModelInputs:
        """The same prompt as arguments of the model's own call.

        Raises:
            ImageError: an image is damaged, or has been encoded already.
        """
        return collate([self])


def place_images(
    token_ids: NDArray[np.int32], images: Sequence[I], image_token: int
) -> PreparedPrompt[I]:
    """Put the tokens of images in place of their placeholders.

    Args:
        token_ids: (L,) BOS and a prompt with a placeholder for each image, or with none.
        images: of the prompt, in order.
        image_token: the placeholder. Without any, all images go between BOS and prompt.
    """
    placeholders = np.flatnonzero(token_ids == image_token)
    # What each image replaces: its placeholder, or nothing between BOS and text.
    if len(placeholders):
        begins, ends = placeholders, placeholders + 1
    else:
        begins = ends = np.ones(len(images), dtype=np.intp)
    spans: list[NDArray[np.int32]] = []
    starts = []
    length = copied = 0
    for image, begin, end in zip(images, begins, ends, strict=True):
        spans += [token_ids[copied:begin], image.image_tokens.astype(np.int32)]
        starts.append(length + int(begin) - copied)
        length = starts[-1] + len(spans[-1])
        copied = int(end)
    return PreparedPrompt(
        np.concatenate([*spans, token_ids[copied:]]), tuple(starts), tuple(images)
    )


def collate(
    prompts: Sequence[PreparedPrompt[Any]],
    *,
    padding_side: Literal["left", "right"] = "left",
    padding_token: int = PADDING,
    pad_to_multiple: int = 1,
) -> ModelInputs:
    """Pad prompts to one another: tokens on one side, tiles at the end.

    Images are cut one after the other, so that only one is held besides the result.

    Args:
        prompts: with their images placed.
        padding_side: of the tokens.
        padding_token: what the shorter prompts are filled up with.
        pad_to_multiple: what L is made a multiple of.

    Raises:
        ImageError: an image is damaged, or has been encoded already.
    """
    lengths = [len(prompt.token_ids) for prompt in prompts]
    length = -(-max(lengths) // pad_to_multiple) * pad_to_multiple
    firsts = [length - own if padding_side == "left" else 0 for own in lengths]
    input_ids = np.full((len(prompts), length), padding_token, dtype=np.int32)  # (B, L)
    attention_mask = np.zeros((len(prompts), length), dtype=np.bool_)  # (B, L)
    for index, (prompt, first) in enumerate(zip(prompts, firsts, strict=True)):
        input_ids[index, first : first + len(prompt.token_ids)] = prompt.token_ids
        attention_mask[index, first : first + len(prompt.token_ids)] = True
    layouts = tuple(tuple(image.layout for image in prompt.images) for prompt in prompts)
    pixel_values = image_masks = image_input_idx = None
    if any(layouts):
        pixel_values, image_masks, image_input_idx = _stack_images(prompts, firsts)
    return ModelInputs(
        input_ids, attention_mask, pixel_values, image_masks, image_input_idx, layouts
    )


def _stack_images(
    prompts: Sequence[PreparedPrompt[Any]], firsts: Sequence[int]
) -> tuple[NDArray[np.float32], NDArray[np.int8], NDArray[np.int32]]:
    """Join each prompt's tiles and fill up with missing ones; a single image is not copied."""
    counts = [sum(prompt.tiles) for prompt in prompts]
    stacked: list[NDArray[Any]] = []
    for index, (prompt, first) in enumerate(zip(prompts, firsts, strict=True)):
        tile = 0
        for start, image in zip(prompt.starts, prompt.images, strict=True):
            processed = image.cut()
            positions = processed.window_positions
            positions = np.where(positions < 0, DROPPED, positions + start) + first
            arrays = processed.pixel_values, processed.image_masks, positions.astype(np.int32)
            if len(prompts) == len(prompt.images) == 1:
                return arrays[0][None], arrays[1][None], arrays[2][None]
            if not stacked:
                shape = len(prompts), max(counts)
                stacked = [np.empty((*shape, *one.shape[1:]), one.dtype) for one in arrays]
            for joined, array in zip(stacked, arrays, strict=True):
                joined[index, tile : tile + len(array)] = array  # (t, ...) into (B, T, ...)
            tile += len(positions)
    for index, (count, first) in enumerate(zip(counts, firsts, strict=True)):
        for joined, missing in zip(stacked, (PADDING, PADDING, DROPPED + first), strict=True):
            joined[index, count:] = missing
    return stacked[0], stacked[1], stacked[2]
