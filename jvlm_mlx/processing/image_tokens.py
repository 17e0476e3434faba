"""The tokens of an image, and which window of which tile belongs to which of them.

Index maps only, from a layout. Follows `image_tokens`, `image_input_idx` and `image_masks` of the
reference implementation's image processor.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..config.image_config import ImageConfig
from .tiling import ImageLayout, block_length, kept_windows


@dataclass(frozen=True)
class ImageTokenIds:
    """Ids of the tokens that represent images, from the checkpoint's tokenizer."""

    start: int
    """Opens a block of patch tokens."""
    end: int
    """Closes a block."""
    patch: int
    """Carries one pooled window."""
    column: int
    """Ends a row of a block."""
    image: int
    """Placeholder in a prompt, replaced by all tokens of an image."""


@dataclass(frozen=True, eq=False)
class IndexMaps:
    """What follows from a layout alone. T tiles, P patches, W windows, N tokens; read-only."""

    tokens: np.ndarray
    """(N,) see `image_tokens`."""
    window_positions: np.ndarray
    """(T, W) see `window_positions`."""
    masks: np.ndarray
    """(T, P) see `image_mask`."""


@lru_cache(maxsize=256)
def index_maps(layout: ImageLayout, config: ImageConfig, ids: ImageTokenIds) -> IndexMaps:
    """Return all three maps of a layout. For small images they are half of the work."""
    maps = IndexMaps(
        tokens=image_tokens(layout, config, ids),
        window_positions=window_positions(layout, config),
        masks=image_mask(layout, config),
    )
    for array in vars(maps).values():
        array.flags.writeable = False
    return maps


def image_tokens(layout: ImageLayout, config: ImageConfig, ids: ImageTokenIds) -> np.ndarray:
    """Return the tokens of one image: the thumbnail's block, then the grid's if there is one.

    A block of 2 x 3 windows reads: start  p p p column  p p p column  end.

    Returns:
        (N,) int64, N = `layout.num_tokens`.
    """
    parts = []
    for rows, columns in (config.window_grid, layout.block)[: layout.num_tiles]:
        row = [ids.patch] * columns + [ids.column] * config.use_column_tokens
        parts += [[ids.start], row * rows, [ids.end]]
    return np.concatenate(parts).astype(np.int64)


def window_positions(layout: ImageLayout, config: ImageConfig) -> np.ndarray:
    """Return the index of the patch token of each pooled window, from the image's first token.

    The grid's patch tokens are in reading order of the whole image, not tile by tile, and a
    window that its tile does not keep (`kept_windows`) has none: -1. Two tiles side by side
    of 5 x 5 windows, of which 4 columns are kept each, after a thumbnail of 5 x 5 windows (tokens
    0 to 31) and the start token 32; the first two rows of windows of each tile:

        thumbnail             tile 0                tile 1
        1  2  3  4  5         33 34 35 36 -1        -1 37 38 39 40
        7  8  9 10 11         42 43 44 45 -1        -1 46 47 48 49

    (6 and 41 are column tokens.)

    Returns:
        (T, W) int64: thumbnail first, then the grid row by row; W windows row by row.
    """
    high, wide = config.window_grid
    thumbnail = _positions(1, np.arange(high), np.arange(wide), config.use_column_tokens)
    thumbnail = thumbnail.reshape(1, -1)  # (1, 1, h, w) -> (1, W)
    if layout.num_tiles == 1:
        return thumbnail
    first = block_length(config.window_grid, config) + 1
    rows, columns = (
        _window_numbers(tiles, patches, config.overlap_margins, pooling)
        for tiles, patches, pooling in zip(
            layout.grid, config.patch_grid, config.pooling_size, strict=True
        )
    )
    grid = _positions(first, rows, columns, config.use_column_tokens)
    # (r, c, h, w) -> (T - 1, W)
    return np.concatenate([thumbnail, grid.reshape(-1, high * wide)])


def image_mask(layout: ImageLayout, config: ImageConfig) -> np.ndarray:
    """Return the mask of each patch: 1, and -1 for all patches of the last tile.

    The reference makes a mask of ones for the tiles of the grid, puts the thumbnail in front of the
    tiles, and appends the thumbnail's row of -1 at the end. So it marks the last tile, and the
    model was trained with that.

    Returns:
        (T, P) int8.
    """
    mask = np.ones((layout.num_tiles, config.patch_grid[0] * config.patch_grid[1]), np.int8)
    mask[-1] = -1
    return mask


def _window_numbers(tiles: int, patches: int, margins: tuple[int, int], pooling: int) -> np.ndarray:
    """Number the windows along one side of the grid, -1 for dropped ones: (tiles, windows)."""
    first, count = kept_windows(tiles, patches, margins, pooling)
    inside = np.arange(-(-patches // pooling)) - first[:, None]
    kept = (inside >= 0) & (inside < count[:, None])
    return np.where(kept, inside + (count.cumsum() - count)[:, None], -1)


def _positions(
    first: int, rows: np.ndarray, columns: np.ndarray, use_column_tokens: bool
) -> np.ndarray:
    """Combine window numbers of both sides into token positions; `first` is that of window 0, 0.

    Rows (r, h) and columns (c, w) of tiles and windows give (r, c, h, w).
    """
    row = np.atleast_2d(rows)[:, None, :, None]
    column = np.atleast_2d(columns)[None, :, None, :]
    stride = columns.max() + 1 + use_column_tokens
    return np.where((row >= 0) & (column >= 0), first + row * stride + column, -1)
