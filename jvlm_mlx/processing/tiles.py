"""From an RGB image to the pixel values of its tiles, cut into patches."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from ..config.image_config import ImageConfig
from .resize import CHANNELS, Rows, array_rows, image_rows, resample, unit_rows
from .tiling import ImageLayout


def cut_tiles(image: Image.Image, layout: ImageLayout, config: ImageConfig) -> np.ndarray:
    """Return the tiles of an RGB image: thumbnail first, then the overlapping grid row by row.

    The image is resized twice, as in the original: to whole patches, in 8 bits unless the
    config say otherwise, and from there to the canvas of the grid and to the thumbnail.

    Returns:
        (T, P, V) float32, V = patch_values: rows, columns and channels of a patch, flattened.
    """
    rows = _resized_rows(image, layout, config)
    tile_height, tile_width = config.tile_size
    stride_height, stride_width = config.tile_stride
    canvas = _normalized(rows, layout.resized_size, layout.canvas_size, config)
    # (H, W 3) -> (rows, columns, tile height, tile width 3): overlapping views, nothing is copied.
    grid = sliding_window_view(canvas, (tile_height, tile_width * CHANNELS))[
        ::stride_height, :: stride_width * CHANNELS
    ]
    if layout.canvas_size == config.tile_size:
        thumbnail = canvas
    else:
        thumbnail = _normalized(rows, layout.resized_size, config.tile_size, config)

    patch = config.patch_size
    patch_rows, patch_columns = config.patch_grid
    tiles = np.empty(
        (layout.num_tiles, patch_rows, patch_columns, patch, patch * CHANNELS), np.float32
    )
    tiles[0] = _patches(thumbnail, config)
    tiles[1:].reshape(*layout.grid, *tiles.shape[1:])[...] = _patches(grid, config)
    return tiles.reshape(layout.num_tiles, -1, config.patch_values)


def _patches(pixels: np.ndarray, config: ImageConfig) -> np.ndarray:
    """View (..., tile height, tile width 3) as (..., patch rows, patch columns, patch, patch 3)."""
    patch = config.patch_size
    patch_rows, patch_columns = config.patch_grid
    cut = pixels.reshape(*pixels.shape[:-2], patch_rows, patch, patch_columns, patch * CHANNELS)
    return cut.swapaxes(-3, -2)


def _resized_rows(image: Image.Image, layout: ImageLayout, config: ImageConfig) -> Rows:
    """Do the first resize. The rows read from the result are float32 between 0 and 1."""
    source = image_rows(image)
    size = image.height, image.width
    if layout.resized_size == size:
        return unit_rows(source)
    in_float32 = config.resize_in_float32
    height, width = layout.resized_size
    resized = np.empty((height, width * CHANNELS), np.float32 if in_float32 else np.uint8)
    for band, values in resample(
        unit_rows(source) if in_float32 else source,
        size,
        layout.resized_size,
        config.interpolation,
        config.antialias,
    ):
        if in_float32:
            values.clip(0, 1, out=resized[band])
        else:
            resized[band] = np.rint(values.clip(0, 255, out=values), out=values)
    return array_rows(resized) if in_float32 else unit_rows(array_rows(resized))


def _normalized(
    rows: Rows, size: tuple[int, int], new_size: tuple[int, int], config: ImageConfig
) -> np.ndarray:
    """Do the second resize and normalize: (height, width * 3) float32 of `new_size`."""
    height, width = new_size
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
