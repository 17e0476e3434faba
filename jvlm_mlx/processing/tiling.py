"""From the size of an image to its tiles and tokens: geometry only, no pixels.

Follows the reference implementation's `smart_resize`, `select_tiling` and overlapping crops.
"""

import math
from dataclasses import dataclass

import numpy as np

from ..config.image_config import ImageConfig
from ..errors import ImageError

MAX_ASPECT_RATIO = 200
"""Longest allowed side, in multiples of the shorter one."""


@dataclass(frozen=True)
class ImageLayout:
    """What becomes of an image of one size. Sizes are (height, width) in pixels."""

    resized_size: tuple[int, int]
    """Size after the first resize, which everything else is taken from."""
    grid: tuple[int, int]
    """Rows and columns of tiles; the thumbnail is not among them. (0, 0): the thumbnail alone."""
    canvas_size: tuple[int, int]
    """Size of the second resize, which the overlapping tiles of the grid are cut from; without a
    grid that of the thumbnail."""
    num_tiles: int
    """Tiles of the grid and the thumbnail."""
    block: tuple[int, int]
    """Rows and columns of pooled windows of the whole grid, each window once."""
    num_patch_tokens: int
    """Tokens that carry a pooled window: those of the thumbnail and those of the block."""
    num_tokens: int
    """Tokens in the prompt: patch tokens and start, column and end tokens."""


def plan_layout(height: int, width: int, config: ImageConfig) -> ImageLayout:
    """Plan the tiles of an image of `height` x `width` pixels.

    Raises:
        ImageError: the image is empty, or more than 200 times longer than wide with `do_resize`.
    """
    if min(height, width) < 1:
        raise ImageError(f"the image is empty: {width} x {height} pixels")
    # The first resize refuses it in the reference, too.
    if config.do_resize and max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise ImageError(
            f"the image is too elongated: {width} x {height} pixels; at most"
            f" {MAX_ASPECT_RATIO} to 1 is possible, so crop it or cut it into parts"
        )
    resized_size = _resized_size(height, width, config) if config.do_resize else (height, width)
    return tile_layout(resized_size, config)


def tile_layout(resized_size: tuple[int, int], config: ImageConfig) -> ImageLayout:
    """Plan the tiles of an image whose first resize gave `resized_size`."""
    if config.max_crops == 0:
        return _thumbnail_layout(resized_size, config)
    grid = _choose_grid(resized_size, config)
    rows, columns = (
        int(kept_windows(tiles, patches, config.overlap_margins, pooling)[1].sum())
        for tiles, patches, pooling in zip(
            grid, config.patch_grid, config.pooling_size, strict=True
        )
    )
    blocks = (config.window_grid, (rows, columns))
    return ImageLayout(
        resized_size=resized_size,
        grid=grid,
        canvas_size=(
            grid[0] * config.tile_stride[0] + config.overlap,
            grid[1] * config.tile_stride[1] + config.overlap,
        ),
        num_tiles=1 + grid[0] * grid[1],
        block=(rows, columns),
        num_patch_tokens=sum(high * wide for high, wide in blocks),
        num_tokens=sum(block_length(block, config) for block in blocks),
    )


def _thumbnail_layout(resized_size: tuple[int, int], config: ImageConfig) -> ImageLayout:
    return ImageLayout(
        resized_size=resized_size,
        grid=(0, 0),
        canvas_size=config.tile_size,
        num_tiles=1,
        block=(0, 0),
        num_patch_tokens=math.prod(config.window_grid),
        num_tokens=block_length(config.window_grid, config),
    )


def block_length(block: tuple[int, int], config: ImageConfig) -> int:
    """Tokens of a block of windows: start, rows of patch and column tokens, end."""
    rows, columns = block
    return 1 + rows * (columns + config.use_column_tokens) + 1


def kept_windows(
    tiles: int, patches: int, margins: tuple[int, int], pooling: int
) -> tuple[np.ndarray, np.ndarray]:
    """Say which pooled windows each of `tiles` tiles keeps along one side of the grid.

    Every tile keeps its own patches; the first also those of the margin before it, the last those
    after it. What it keeps is rounded up to whole windows tile by tile. With 27 patches, margins of
    4 + 4 and windows of 2, three tiles keep 12, 10 and 12 of their 14 windows:

        tile 0   0 1 2 3 4 5 6 7 8 9 10 11  .  .
        tile 1   . . 2 3 4 5 6 7 8 9 10 11  .  .
        tile 2   . . 2 3 4 5 6 7 8 9 10 11 12 13

    Returns:
        The first kept window of each tile and the number of kept windows, (tiles,) each.
    """
    before, after = margins
    is_first = np.arange(tiles) == 0
    is_last = np.arange(tiles) == tiles - 1
    own = patches - before - after + is_first * before + is_last * after
    return np.where(is_first, 0, before // pooling), -(-own // pooling)


def _resized_size(height: int, width: int, config: ImageConfig) -> tuple[int, int]:
    """Round both sides to whole patches, with an area between the two limits.

    Python's `round` takes halves to the even neighbor, as the reference does.
    """
    patch = config.patch_size
    rows, columns = round(height / patch), round(width / patch)
    area = rows * columns * patch * patch
    if area > config.max_pixels:
        shrink = math.sqrt(height * width / config.max_pixels)
        rows = max(1, math.floor(height / shrink / patch))
        columns = max(1, math.floor(width / shrink / patch))
    elif area < config.min_pixels:
        grow = math.sqrt(config.min_pixels / (height * width))
        rows = math.ceil(height * grow / patch)
        columns = math.ceil(width * grow / patch)
    return rows * patch, columns * patch


def _choose_grid(size: tuple[int, int], config: ImageConfig) -> tuple[int, int]:
    """Choose rows and columns of tiles: the least enlargement, else the least reduction.

    All in float32. A side as long as the overlap divides by zero and a shorter one gives a
    negative scale; both go through the same comparisons as any other number.
    """
    limit = config.max_crops
    every = (
        (rows, columns) for rows in range(1, limit + 1) for columns in range(1, limit // rows + 1)
    )
    # Fewest tiles first: of equally good grids the first one counts.
    grids = np.array(sorted(every, key=math.prod))
    covered = (grids * config.tile_stride).astype(np.float32)
    with np.errstate(divide="ignore"):
        scales = (covered / (np.array(size, np.float32) - np.float32(config.overlap))).min(axis=1)
    enlarges = scales >= 1
    best = np.where(enlarges, scales, np.inf).argmin() if enlarges.any() else scales.argmax()
    rows, columns = grids[best].tolist()
    return rows, columns
