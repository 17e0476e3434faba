"""Texts and pictures to model inputs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import PromptError
from .images.processor import ImageProcessor, ProcessedImage
from .images.tiling import ImageLayout
from .text.messages import collect_images
from .text.template import ChatTemplate, RenderedPrompt
from .text.tokenizer import IMAGE_PLACEHOLDER, Tokenizer

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

    They stay numpy on purpose: where the picture features go is worked out from the indices,
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
    """(B, T, P, V) tiles of all pictures of a row one after the other; missing tiles are -1.
    None if no row has a picture."""
    image_masks: NDArray[np.int8] | None
    """(B, T, P) 1, or -1 for the patches that get the connector's second padding vector."""
    image_input_idx: NDArray[np.int32] | None
    """(B, T, W) where in L a window's feature goes; negative if it is dropped."""
    layouts: tuple[tuple[ImageLayout, ...], ...]
    """For each row, how each of its pictures was tiled."""

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
class _Row:
    """One prompt with its pictures, before it is padded to the others."""

    input_ids: NDArray[np.int32]  # (L,)
    positions: list[NDArray[np.int32]]  # (T, W) per picture, counted from the row's first token
    images: list[ProcessedImage]


class Processor:
    """Tokenizer, chat template and image processor of a checkpoint together.

    All methods may be called from any thread.
    """

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate, image_processor: ImageProcessor
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.image_processor = image_processor

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True
    ) -> RenderedPrompt:
        """Return the prompt text of a conversation; see `ChatTemplate.render`."""
        return self.template.render(messages, add_generation_prompt)

    def image_layout(
        self,
        width: int,
        height: int,
        *,
        max_crops: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> ImageLayout:
        """Return how a picture of this many pixels would be tiled, without having it."""
        return self.image_processor.layout(
            width, height, max_crops=max_crops, min_pixels=min_pixels, max_pixels=max_pixels
        )

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids without special tokens."""
        return self.tokenizer.decode(ids)

    def from_messages(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        images: Sequence[Any] | None = None,
        *,
        max_crops: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> ModelInputs:
        """Return the model inputs of one conversation.

        Args:
            messages: the conversation, see `text/messages.py`.
            add_generation_prompt: whether to end with what an answer follows.
            images: pictures for the image parts that name no source, in order.
            max_crops: most tiles of a picture; None: the checkpoint's.
            min_pixels: area below which a picture is enlarged; None: the checkpoint's.
            max_pixels: area above which a picture is reduced; None: the checkpoint's.

        Raises:
            PromptError: a message is malformed, or pictures and their places differ.
            ImageError: a picture cannot be opened or has a size the model cannot take.
            RequestError: a limit on pictures is out of range.
        """
        sources = collect_images(messages, images)
        prompt = self.apply_chat_template(messages, add_generation_prompt)
        return self(
            [prompt],
            [sources],
            max_crops=max_crops,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
        )

    def __call__(
        self,
        text: str | Sequence[str],
        images: Sequence[Any] | None = None,
        *,
        max_crops: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        parse_special_tokens: bool = False,
    ) -> ModelInputs:
        """Return the model inputs of one prompt or several.

        Every `<|image|>` is replaced by the tokens of the next picture of its prompt; a prompt
        without any gets all its pictures in front. One BOS precedes everything. (The original
        places the features of the second and later pictures in front one token too early, on
        no patch of theirs; here they are on their patches, as with placeholders.)

        In a prompt made by `apply_chat_template` the special tokens of the template are
        special and all words of the messages are words. In any other text, only `<|image|>` is
        special unless `parse_special_tokens` is set.

        Args:
            text: one prompt or a list of them.
            images: a list of pictures per prompt; for a single prompt also just its list.
                Sources as the image processor takes them.
            max_crops: most tiles of a picture; None: the checkpoint's.
            min_pixels: area below which a picture is enlarged; None: the checkpoint's.
            max_pixels: area above which a picture is reduced; None: the checkpoint's.
            parse_special_tokens: whether special tokens spelled in a plain text are meant.

        Raises:
            PromptError: a prompt's placeholders and pictures differ in number.
            ImageError: a picture cannot be opened or has a size the model cannot take.
            RequestError: a limit on pictures is out of range.
        """
        texts = [text] if isinstance(text, str) else list(text)
        if not texts:
            raise PromptError("there is no prompt; give at least one")
        sources = _images_per_text(len(texts), images)
        encoded = [self._encode(one, parse_special_tokens) for one in texts]
        # All counts are known to fit before the first picture is opened.
        for ids, row_sources in zip(encoded, sources, strict=True):
            placeholders = ids.count(self.tokenizer.image_token_ids.image)
            if placeholders not in (0, len(row_sources)):
                raise PromptError(
                    f"the prompt has {placeholders} {IMAGE_PLACEHOLDER} placeholders,"
                    f" but {len(row_sources)} images were given"
                )
        rows = [
            self._row(
                ids,
                [
                    self.image_processor(
                        source, max_crops=max_crops, min_pixels=min_pixels, max_pixels=max_pixels
                    )
                    for source in row_sources
                ],
            )
            for ids, row_sources in zip(encoded, sources, strict=True)
        ]
        return _collate(rows)

    def _encode(self, text: str, parse_special_tokens: bool) -> list[int]:
        if isinstance(text, RenderedPrompt):
            return self.tokenizer.encode(text, text.literals)
        if not isinstance(text, str):
            raise PromptError(f"a prompt must be a text, found type {type(text).__name__}")
        special = None if parse_special_tokens else (IMAGE_PLACEHOLDER,)
        return self.tokenizer.encode(text, special_tokens=special)

    def _row(self, ids: list[int], images: list[ProcessedImage]) -> _Row:
        token_ids = np.array([self.tokenizer.bos_token_id, *ids], dtype=np.int32)
        places = np.flatnonzero(token_ids == self.tokenizer.image_token_ids.image)
        # What each picture replaces: its placeholder, or nothing between BOS and text.
        if len(places):
            starts, ends = places, places + 1
        else:
            starts = ends = np.ones(len(images), dtype=np.intp)

        pieces: list[NDArray[np.int32]] = []
        positions = []
        length = taken = 0
        for image, start, end in zip(images, starts, ends, strict=True):
            pieces += [token_ids[taken:start], image.image_tokens.astype(np.int32)]
            first = length + int(start) - taken
            positions.append(
                np.where(
                    image.window_positions < 0, DROPPED, image.window_positions + first
                ).astype(np.int32)
            )
            length = first + len(image.image_tokens)
            taken = int(end)
        return _Row(np.concatenate([*pieces, token_ids[taken:]]), positions, images)


def _images_per_text(count: int, images: Sequence[Any] | None) -> list[list[Any]]:
    """Bring `images` to one list per text."""
    if images is None:
        return [[] for _ in range(count)]
    if not isinstance(images, list | tuple):
        raise PromptError(
            "images must be a list of pictures, or a list with one such list per text,"
            f" found type {type(images).__name__}"
        )
    nested = [isinstance(entry, list | tuple) for entry in images]
    if count == 1 and not any(nested):
        return [list(images)]
    if len(images) != count or not all(nested):
        raise PromptError(
            f"images must have one list of pictures for each of the {count} texts,"
            f" found {sum(nested)} lists among {len(images)} entries"
        )
    return [list(entry) for entry in images]


def _collate(rows: list[_Row]) -> ModelInputs:
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
