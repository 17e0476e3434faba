"""From an RGB picture to the pixel values of its tiles, cut into patches."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from ..config.image_config import ImageSettings
from .resize import CHANNELS, Rows, array_rows, picture_rows, resample, unit_rows
from .tiling import ImageLayout


def cut_tiles(picture: Image.Image, layout: ImageLayout, settings: ImageSettings) -> np.ndarray:
    """Return the tiles of an RGB picture: thumbnail first, then the overlapping grid row by row.

    The picture is resized twice, as in the original: to whole patches, in 8 bits unless the
    settings say otherwise, and from there to the canvas of the grid and to the thumbnail.

    Returns:
        (T, P, V) float32, V = patch_values: rows, columns and channels of a patch, flattened.
    """
    rows = _resized_rows(picture, layout, settings)
    tile_height, tile_width = settings.tile_size
    stride_height, stride_width = settings.tile_stride
    canvas = _normalised(rows, layout.resized_size, layout.canvas_size, settings)
    # (H, W 3) -> (rows, columns, tile height, tile width 3): overlapping views, nothing is copied.
    grid = sliding_window_view(canvas, (tile_height, tile_width * CHANNELS))[
        ::stride_height, :: stride_width * CHANNELS
    ]
    if layout.canvas_size == settings.tile_size:
        thumbnail = canvas
    else:
        thumbnail = _normalised(rows, layout.resized_size, settings.tile_size, settings)

    patch = settings.patch_size
    patch_rows, patch_columns = settings.patch_grid
    tiles = np.empty(
        (layout.num_tiles, patch_rows, patch_columns, patch, patch * CHANNELS), np.float32
    )
    tiles[0] = _patches(thumbnail, settings)
    tiles[1:].reshape(*layout.grid, *tiles.shape[1:])[...] = _patches(grid, settings)
    return tiles.reshape(layout.num_tiles, -1, settings.patch_values)


def _patches(pixels: np.ndarray, settings: ImageSettings) -> np.ndarray:
    """View (..., tile height, tile width 3) as (..., patch rows, patch columns, patch, patch 3)."""
    patch = settings.patch_size
    patch_rows, patch_columns = settings.patch_grid
    cut = pixels.reshape(*pixels.shape[:-2], patch_rows, patch, patch_columns, patch * CHANNELS)
    return cut.swapaxes(-3, -2)


def _resized_rows(picture: Image.Image, layout: ImageLayout, settings: ImageSettings) -> Rows:
    """Do the first resize. The rows read from the result are float32 between 0 and 1."""
    source = picture_rows(picture)
    size = picture.height, picture.width
    if layout.resized_size == size:
        return unit_rows(source)
    in_float32 = settings.resize_in_float32
    height, width = layout.resized_size
    resized = np.empty((height, width * CHANNELS), np.float32 if in_float32 else np.uint8)
    for band, values in resample(
        unit_rows(source) if in_float32 else source,
        size,
        layout.resized_size,
        settings.interpolation,
        settings.antialias,
    ):
        if in_float32:
            values.clip(0, 1, out=resized[band])
        else:
            resized[band] = np.rint(values.clip(0, 255, out=values), out=values)
    return array_rows(resized) if in_float32 else unit_rows(array_rows(resized))


def _normalised(
    rows: Rows, size: tuple[int, int], new_size: tuple[int, int], settings: ImageSettings
) -> np.ndarray:
    """Do the second resize and normalise: (height, width * 3) float32 of `new_size`."""
    height, width = new_size
    pixels = np.empty((height, width * CHANNELS), np.float32)
    for band, values in resample(rows, size, new_size, settings.interpolation, settings.antialias):
        normalise(values.clip(0, 1, out=values), settings, out=pixels[band])
    return pixels


def normalise(values: np.ndarray, settings: ImageSettings, out: np.ndarray) -> None:
    """Bring rows of pixels (rows, width * 3) between 0 and 1 to the range the tower expects."""
    if settings.normalization_method == "gaussian":
        width = values.shape[1] // CHANNELS
        np.subtract(values, np.tile(np.array(settings.image_mean, np.float32), width), out=out)
        out /= np.tile(np.array(settings.image_std, np.float32), width)
    else:
        low, high = settings.image_range
        np.multiply(values, np.float32(high - low), out=out)
        out += np.float32(low)
