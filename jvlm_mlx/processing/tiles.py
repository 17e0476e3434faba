"""From an RGB image to the pixel values of its tiles, cut into patches."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from ..config.image_config import ImageConfig
from .resize import CHANNELS, array_rows, image_rows, resample, unit_rows
from .tiling import ImageLayout


def resize_source(
    image: Image.Image, layout: ImageLayout, config: ImageConfig
) -> tuple[np.ndarray, ...]:
    """Make all that is needed of an RGB image, so that it can be dropped.

    With `do_resize` that is the result of the first resize, to whole patches. Without, it is the
    canvas of the grid and the thumbnail, both resized from the image itself.

    Returns:
        (height, width * 3) arrays: 8-bit, or float32 between 0 and 1 with `resize_in_float32`.
    """
    if config.do_resize:
        return (_resized(image, layout.resized_size, config),)
    canvas = _resized(image, layout.canvas_size, config)
    if layout.canvas_size == config.tile_size:
        return canvas, canvas
    return canvas, _resized(image, config.tile_size, config)


def cut_tiles(
    resized: tuple[np.ndarray, ...], layout: ImageLayout, config: ImageConfig
) -> np.ndarray:
    """Return the tiles of an image: thumbnail first, then the overlapping grid row by row.

    Returns:
        (T, P, V) float32, V = patch_values: rows, columns and channels of a patch, flattened.
    """
    tile_height, tile_width = config.tile_size
    stride_height, stride_width = config.tile_stride
    # With do_resize a second resize follows, from the first one's result.
    canvas = _normalized(resized[0], layout.canvas_size, config)
    if layout.canvas_size == config.tile_size:
        thumbnail = canvas
    else:
        thumbnail = _normalized(resized[-1], config.tile_size, config)
    thumbnail = _patches(thumbnail, config)
    if layout.num_tiles == 1:
        return thumbnail.reshape(1, -1, config.patch_values)  # (p, q, y, x 3) -> (1, P, V)
    # (H, W 3) -> (rows, columns, tile height, tile width 3): overlapping views, nothing is copied.
    grid = sliding_window_view(canvas, (tile_height, tile_width * CHANNELS))[
        ::stride_height, :: stride_width * CHANNELS
    ]

    patch = config.patch_size
    patch_rows, patch_columns = config.patch_grid
    tiles = np.empty(
        (layout.num_tiles, patch_rows, patch_columns, patch, patch * CHANNELS), np.float32
    )
    tiles[0] = thumbnail
    tiles[1:].reshape(*layout.grid, *tiles.shape[1:])[...] = _patches(grid, config)
    return tiles.reshape(layout.num_tiles, -1, config.patch_values)


def _patches(pixels: np.ndarray, config: ImageConfig) -> np.ndarray:
    """View (..., tile height, tile width 3) as (..., patch rows, patch columns, patch, patch 3)."""
    patch = config.patch_size
    patch_rows, patch_columns = config.patch_grid
    cut = pixels.reshape(*pixels.shape[:-2], patch_rows, patch, patch_columns, patch * CHANNELS)
    return cut.swapaxes(-3, -2)


def _resized(image: Image.Image, new_size: tuple[int, int], config: ImageConfig) -> np.ndarray:
    """Resize an image to (height, width * 3), rounded to 8 bits unless in float32."""
    height, width = new_size
    size = image.height, image.width
    if size == new_size:
        return np.array(image).reshape(height, width * CHANNELS)
    rows = image_rows(image)
    in_float32 = config.resize_in_float32
    resized = np.empty((height, width * CHANNELS), np.float32 if in_float32 else np.uint8)
    for band, values in resample(
        unit_rows(rows) if in_float32 else rows,
        size,
        new_size,
        config.interpolation,
        config.antialias,
    ):
        if in_float32:
            values.clip(0, 1, out=resized[band])
        else:
            resized[band] = np.rint(values.clip(0, 255, out=values), out=values)
    return resized


def _normalized(source: np.ndarray, new_size: tuple[int, int], config: ImageConfig) -> np.ndarray:
    """Resize in float32, unless it has the size already, and normalize: (H, W * 3) float32."""
    height, width = new_size
    size = len(source), source.shape[1] // CHANNELS
    rows = array_rows(source) if source.dtype == np.float32 else unit_rows(array_rows(source))
    pixels = np.empty((height, width * CHANNELS), np.float32)
    for band, values in resample(rows, size, new_size, config.interpolation, config.antialias):
        normalize(values.clip(0, 1, out=values), config, out=pixels[band])
    return pixels


def normalize(values: np.ndarray, config: ImageConfig, out: np.ndarray) -> None:
    """Bring rows of pixels (rows, width * 3) between 0 and 1 to the range the tower expects."""
    if config.normalization_method == "gaussian":
        width = values.shape[1] // CHANNELS
        np.subtract(values, np.tile(np.array(config.image_mean, np.float32), width), out=out)
        out /= np.tile(np.array(config.image_std, np.float32), width)
    else:
        low, high = config.image_range
        np.multiply(values, np.float32(high - low), out=out)
        out += np.float32(low)
