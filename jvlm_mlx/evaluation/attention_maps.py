"""What an answer looked at: tiles, pooling weights and attention, on the pixels of the image.

Both kinds of attention are computed again, apart from the fast path: those of the connector within
its windows, and those of the decoder from each answer token to the image's tokens.
"""

import time
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from PIL import Image

from ..config.image_config import ImageConfig
from ..errors import RequestError
from ..generation import device
from ..generation.answer import Answer
from ..generation.image_encoding import EncodedImage
from ..generation.memory import keep_wired
from ..generation.options import GenerationOptions
from ..generation.prompt import prepare_prompt
from ..generation.response import GenerationResult
from ..model import Model
from ..model.model import TILE_GROUP_SIZE
from ..model.windows import window_patches
from ..processing.image_io import open_image
from ..processing.image_processor import ProcessedImage
from ..processing.processor import Processor
from ..processing.tiling import ImageLayout

Floats = npt.NDArray[np.float32]
Boxes = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Explanation:
    """An answer, and what in the image it came from. F image features, p patches of a window.

    Boxes are (left, top, right, bottom) in pixels of the image.
    """

    text: str
    """The answer."""
    tokens: tuple[str, ...]
    """Text of each of its tokens."""
    image: Image.Image
    """In RGB, upright, in its own size."""
    tile_boxes: Boxes
    """(T, 4) the thumbnail, then the grid row by row; tiles overlap."""
    tile_of: npt.NDArray[np.int64]
    """(F,) the tile that each feature comes from."""
    window_boxes: Boxes
    """(F, 4) what each feature's window covers."""
    patch_boxes: Boxes
    """(F, p, 4) its patches; of no area beyond the edge of the tile."""
    pooling: Floats
    """(F, p) weight of each patch in its window, the mean over heads; rows sum to 1."""
    attention: Floats
    """(tokens, layers, F) from the position that produced a token, the mean over heads."""

    def attention_map(self, token: int | None = None) -> Floats:
        """Return the attention per pixel, (height, width), of one answer token or of all.

        The mean over layers. Each feature's weight is spread over its window; where tiles and the
        thumbnail overlap, weights add up. So the map's sum is the weight on the image.
        """
        weights = self.attention.mean(1)  # (tokens, F)
        weights = weights.mean(0) if token is None else weights[token]
        return self._spread(self.window_boxes, weights)

    def pooling_map(self) -> Floats:
        """Return the pooling weights per pixel, (height, width): 1 where patches count alike.

        The mean over the windows that cover a pixel.
        """
        inside = _areas(self.patch_boxes) > 0
        boxes = self.patch_boxes[inside]
        # Relative to the uniform weight 1 / p of p valid patches.
        relative = (self.pooling * inside.sum(1, keepdims=True))[inside]
        areas = _areas(boxes)
        total = self._spread(boxes, relative * areas)
        count = self._spread(boxes, areas)
        return np.divide(total, count, out=np.ones_like(total), where=count > 0)

    def _spread(self, boxes: Boxes, weights: npt.NDArray[Any]) -> Floats:
        """Return a map to which each box adds its weight, spread evenly over its pixels."""
        width, height = self.image.size
        pixels = np.zeros((height, width), np.float32)
        for box, weight in zip(boxes, weights, strict=True):
            rows = _coverage(box[1], box[3], height)
            columns = _coverage(box[0], box[2], width)
            area = rows.sum() * columns.sum()
            if area > 0:
                top, left = _span(rows), _span(columns)
                pixels[top, left] += (weight / area) * np.outer(rows[top], columns[left])
        return pixels


def explain(
    model: Model, processor: Processor, image: Any, prompt: str, **options: Any
) -> Explanation:
    """Answer a question about an image and return what the answer looked at.

    Args:
        model: from `load`.
        processor: from `load`.
        image: as for `generate`; not encoded before.
        prompt: the question.
        **options: see `GenerationOptions`.

    Raises:
        JvlmError: bad options, prompt or image.
    """
    if isinstance(image, EncodedImage):
        raise RequestError("explain: give the image itself, an encoded one has no pixels")
    source = open_image(image)
    request = GenerationOptions(**options)
    prepared = prepare_prompt(processor, prompt, [source], None, request)
    answer = Answer(
        model, processor, prepared, request,
        caches=None, progress=None, cancel=None, start=time.perf_counter(),
    )  # fmt: skip
    result = GenerationResult.collect(list(answer.responses()))
    (opened,) = prepared.images
    cut = opened.cut()
    kept = np.argwhere(cut.window_positions >= 0)  # (F, 2) tile and window of each feature

    def look() -> tuple[Floats, Floats]:
        features, pooling = _connector_weights(model, cut)
        # (T, W) -> (F,) place of each feature in the prompt
        places = prepared.starts[0] + cut.window_positions[tuple(kept.T)]
        attention = _decoder_weights(model, prepared.token_ids, features, places, result.token_ids)
        return pooling, attention

    with keep_wired(request.wired_limit):
        pooling, attention = device.run(look)
    boxes, inside = _patch_boxes(opened.config, opened.layout, source.size, kept)
    return Explanation(
        text=result.text,
        tokens=tuple(processor.tokenizer.decode([token], False) for token in result.token_ids),
        image=source,
        tile_boxes=_tile_boxes(opened.config, opened.layout, source.size),
        tile_of=kept[:, 0],
        window_boxes=_union(boxes, inside),
        patch_boxes=boxes,
        pooling=pooling,
        attention=attention,
    )


def _connector_weights(model: Model, image: ProcessedImage) -> tuple[mx.array, Floats]:
    """Return the features (F, hidden_size) of an image and its pooling weights (F, p)."""
    plan = model.plan(image.window_positions[None], image.layout.num_tokens, TILE_GROUP_SIZE)
    features, weights = [], []
    for group in plan.groups:
        windows = model.connector.windows(
            model.vision_tower(mx.array(image.pixel_values[group.tiles])),
            mx.array(image.image_masks[group.tiles]),
            mx.array(group.patches),
            mx.array(group.inside),
        )
        features.append(model.connector.projector(model.connector.pooling(windows)))
        weights.append(model.connector.pooling.weights(windows).mean(1))  # (f, H, p) -> (f, p)
        mx.eval(features[-1], weights[-1])
    return mx.concatenate(features), np.array(mx.concatenate(weights))


def _decoder_weights(
    model: Model,
    prompt: npt.NDArray[np.int32],
    features: mx.array,
    places: npt.NDArray[np.int64],
    answer: tuple[int, ...],
) -> Floats:
    """Return (answer tokens, layers, F): the weights on the image's features, mean over heads."""
    # The last token of the answer is produced by the one before it, and never read.
    ids = np.concatenate([prompt, np.array(answer[:-1], np.int32)])[None]
    sources = np.full(ids.shape, -1, np.int32)
    sources[0, places] = np.arange(len(places))
    found = []
    embeddings = model.merge(model.decoder.embed(ids), features, sources)
    for weights in model.decoder.attention_weights(embeddings, len(prompt) - 1):
        # (1, H, A, L) -> (A, F)
        found.append(np.array(weights[0].mean(0)[:, mx.array(places)]))
    return np.stack(found, axis=1)


def _tile_boxes(config: ImageConfig, layout: ImageLayout, size: tuple[int, int]) -> Boxes:
    """Return (T, 4) what each tile covers: the thumbnail everything, a tile its part."""
    high, wide = config.tile_size
    rows, columns = layout.grid
    boxes = [
        (column * config.tile_stride[1], row * config.tile_stride[0])
        for row in range(rows)
        for column in range(columns)
    ]
    corners = [(left, top, left + wide, top + high) for left, top in boxes]
    grid = _scaled(np.array(corners, np.float64).reshape(-1, 4), layout.canvas_size, size)
    return np.concatenate([np.array([[0, 0, *size]], np.float64), grid])


def _patch_boxes(
    config: ImageConfig,
    layout: ImageLayout,
    size: tuple[int, int],
    kept: npt.NDArray[np.intp],
) -> tuple[Boxes, npt.NDArray[np.bool_]]:
    """Return the patches (F, p, 4) of the kept windows, and which of them are there (F, p)."""
    patches, inside = window_patches(config.patch_grid, config.pooling_size)  # (W, p)
    rows, columns = np.divmod(patches, config.patch_grid[1])
    corners = np.stack([columns, rows, columns + 1, rows + 1], -1) * float(config.patch_size)
    tiles = _tile_boxes(config, layout, size)  # (T, 4)
    tile, window = kept[:, 0], kept[:, 1]
    # A tile's own pixels to those of the image, whose part it is.
    high, wide = config.tile_size
    left_top = np.tile(tiles[tile, None, :2], 2)  # (F, 1, 4)
    scale = np.tile((tiles[tile, None, 2:] - tiles[tile, None, :2]) / (wide, high), 2)
    boxes = left_top + corners[window] * scale
    boxes[~inside[window], 2:] = boxes[~inside[window], :2]
    return boxes, inside[window]


def _union(boxes: Boxes, inside: npt.NDArray[np.bool_]) -> Boxes:
    """Return the box (F, 4) around the patches (F, p, 4) that are there."""
    first = np.where(inside[..., None], boxes, np.inf)[..., :2].min(1)
    last = np.where(inside[..., None], boxes, -np.inf)[..., 2:].max(1)
    return np.concatenate([first, last], -1)


def _scaled(boxes: Boxes, canvas: tuple[int, int], size: tuple[int, int]) -> Boxes:
    """Return boxes of a canvas (height, width) as boxes of an image (width, height)."""
    return boxes * np.tile(np.array(size) / canvas[::-1], 2)


def _areas(boxes: Boxes) -> npt.NDArray[np.float64]:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _coverage(begin: float, end: float, length: int) -> npt.NDArray[np.float64]:
    """Return which fraction of each of `length` pixels lies between two places."""
    edges = np.arange(length + 1).clip(begin, end)
    return np.diff(edges)


def _span(coverage: npt.NDArray[np.float64]) -> slice:
    touched = np.flatnonzero(coverage)
    return slice(touched[0], touched[-1] + 1)
