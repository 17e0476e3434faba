"""PyTorch's image resampling in numpy, to the last bit: bilinear and bicubic, with antialiasing.

The reference implementation resizes with `torch.nn.functional.interpolate`. Its CPU kernels work
in float32, first along rows and then along columns, and add up the weighted pixels with fused
multiply-adds. The same sums are made here in the same order, so that the rounding to 8 bits never
goes another way.

A row of an image is a flat run of width x 3 numbers. Only the source rows and columns that carry
a weight are gathered, band by band, so memory does not grow with the source.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

CHANNELS = 3

SMALL_SIDES = 128
"""Height + width up to which PyTorch's bilinear kernel without antialiasing is another one."""

BAND_VALUES = 2**17
"""Numbers of a result made at a time: few enough to stay in the processor's cache."""
MAX_READ = 2**20
"""Source numbers read for them, at most."""

Rows = Callable[[int, int], np.ndarray]
"""Reads the source rows from `top` up to `bottom`: (bottom - top, width * 3), 8-bit or float32."""


def image_rows(image: Image.Image) -> Rows:
    """Read bands of an RGB image, 8-bit, without ever making an array of the whole."""

    def rows(top: int, bottom: int) -> np.ndarray:
        band = np.asarray(image.crop((0, top, image.width, bottom)))
        return band.reshape(bottom - top, -1)

    return rows


def array_rows(values: np.ndarray) -> Rows:
    """Read bands of an array (height, width * 3)."""
    return lambda top, bottom: values[top:bottom]


def unit_rows(rows: Rows) -> Rows:
    """Read 8-bit bands as float32 between 0 and 1."""
    return lambda top, bottom: np.divide(rows(top, bottom), 255, dtype=np.float32)


def resample(
    rows: Rows,
    size: tuple[int, int],
    new_size: tuple[int, int],
    interpolation: str,
    antialias: bool,
) -> Iterator[tuple[slice, np.ndarray]]:
    """Resize an image of `size` (height, width) to `new_size`, band by band.

    Args:
        rows: reads the source.
        size: of the source.
        new_size: of the result.
        interpolation: `bilinear` or `bicubic`.
        antialias: whether the kernel widens when it reduces.

    Yields:
        The rows of the result that a band covers, and the band: (rows, new width * 3) float32, the
        caller's to change. Bicubic values may overshoot the range of the source.
    """
    vertical = _taps(size[0], new_size[0], interpolation, antialias)
    horizontal = _taps(size[1], new_size[1], interpolation, antialias).for_channels()
    joint = interpolation == "bilinear" and not antialias and sum(new_size) <= SMALL_SIDES
    read = max(1.0, size[0] / new_size[0]) * size[1] * CHANNELS  # per row of the result
    step = max(1, min(BAND_VALUES // (new_size[1] * CHANNELS), int(MAX_READ / read)))
    for top in range(0, new_size[0], step):
        band = slice(top, min(top + step, new_size[0]))
        index = vertical.index[:, band]
        first = index.min()
        source = rows(first, index.max() + 1)
        index = index - first
        used = np.zeros(len(source), np.bool_)
        used[index] = True
        if not used.all():
            source, index = source[used], (used.cumsum() - 1)[index]
        taps = Taps(index, vertical.weight[:, band], vertical.fused[:, band])
        if joint:
            yield band, _joint_sum(source, taps, horizontal)
        else:
            yield band, _separable_sum(_separable_sum(source, horizontal, axis=1), taps, axis=0)


@dataclass(frozen=True)
class Taps:
    """The source numbers that one number of the result is made of, along one axis.

    All arrays are (taps, results); a tap without effect has weight 0.
    """

    index: np.ndarray
    """Which source number."""
    weight: np.ndarray
    """Its float32 weight."""
    fused: np.ndarray
    """Whether the product goes unrounded into the sum, as a fused multiply-add does."""

    def for_channels(self) -> "Taps":
        """Return the taps of a row of pixels with their three channels side by side."""
        index = self.index[:, :, None] * CHANNELS + np.arange(CHANNELS)
        return Taps(
            index.reshape(len(index), -1),
            self.weight.repeat(CHANNELS, axis=1),
            self.fused.repeat(CHANNELS, axis=1),
        )


def _separable_sum(values: np.ndarray, taps: Taps, axis: int) -> np.ndarray:
    """Resample one axis of (rows, columns), tap after tap."""
    total = None
    for index, weight, fused in zip(taps.index, taps.weight, taps.fused, strict=True):
        if axis == 0:
            weight, fused = weight[:, None], fused[:, None]
        total = _add_product(total, values.take(index, axis), weight, fused)
    assert total is not None
    return total


def _joint_sum(values: np.ndarray, vertical: Taps, horizontal: Taps) -> np.ndarray:
    """Resample both axes of (rows, columns) at once: bilinear, one weight for each neighbor.

    In the order of `_taps` (later neighbor first) the kernel begins with the upper right one, for
    the reason given there, and continues with upper left, lower left, lower right.
    """
    total = None
    for row, column in ((1, 0), (1, 1), (0, 1), (0, 0)):
        taken = values.take(vertical.index[row], 0).take(horizontal.index[column], 1)
        weight = vertical.weight[row][:, None] * horizontal.weight[column]
        total = _add_product(total, taken, weight, horizontal.fused[column])
    assert total is not None
    return total


def _add_product(
    total: np.ndarray | None, values: np.ndarray, weight: np.ndarray, fused: np.ndarray
) -> np.ndarray:
    """Add values * weight to a float32 sum, in place; None starts one with the rounded product."""
    if total is None:
        return np.multiply(values, weight, dtype=np.float32)
    # The product of two float32 numbers is exact in float64, so rounding only the sum back to
    # float32 is what a fused multiply-add does.
    product = values.astype(np.float64)
    product *= weight.astype(np.float64)
    if not fused.all():
        np.copyto(product, product.astype(np.float32), where=~fused)
    return np.add(total, product, out=total, dtype=np.float64, casting="same_kind")


def _taps(size: int, new_size: int, interpolation: str, antialias: bool) -> Taps:
    """Return the taps of one axis that goes from `size` to `new_size` numbers."""
    scale = np.float32(size) / np.float32(new_size)
    middle = np.arange(new_size, dtype=np.float32) + np.float32(0.5)
    if antialias:
        return _widened_taps(size, scale, middle, interpolation)
    center = _multiply_add(middle, scale, -0.5)
    if interpolation == "bilinear":
        center = np.maximum(center, np.float32(0))
    before = np.floor(center)
    fraction = center - before
    rest = np.float32(1) - fraction
    # Compilers turn a * b + c * d into fma(a, b, c * d): of the first two taps the later one is
    # rounded first, so it comes first here. The others follow in order, all fused. The curve of
    # bicubic is steeper (-0.75) than with antialiasing (-0.5).
    if interpolation == "bilinear":
        offsets, weights = [1, 0], [fraction, rest]
    else:
        offsets = [0, -1, 1, 2]
        weights = [
            _near_curve(fraction),
            _far_curve(fraction + np.float32(1)),
            _near_curve(rest),
            _far_curve(rest + np.float32(1)),
        ]
    index = (before.astype(np.intp) + np.array(offsets)[:, None]).clip(0, size - 1)
    return Taps(index, np.stack(weights), np.ones(index.shape, np.bool_))


def _widened_taps(size: int, scale: np.float32, middle: np.ndarray, interpolation: str) -> Taps:
    """Return the taps of a kernel that widens with a reduction, as Pillow's does."""
    half = np.float32(1 if interpolation == "bilinear" else 2)
    stretch = max(scale, np.float32(1))
    support = half * stretch
    center = scale * middle
    # The reference's halves are float64 and lift the rest of their expressions to it.
    first = ((center - support).astype(np.float64) + 0.5).astype(np.intp).clip(0)
    end = ((center + support).astype(np.float64) + 0.5).astype(np.intp).clip(None, size)
    count = end - first
    tap = np.arange(count.max())[:, None]
    offset = ((tap + first).astype(np.float32) - center).astype(np.float64) + 0.5
    distance = np.abs(offset * (np.float32(1) / stretch)).astype(np.float32)
    curve = _triangle if interpolation == "bilinear" else _cubic
    weight = np.where(tap < count, curve(distance), np.float32(0))
    # Sums of four products at a time are vectorized without fused multiply-adds; the first product
    # stands alone and what is left over is fused.
    return Taps(
        index=(tap + first).clip(None, size - 1),
        weight=weight / weight.cumsum(axis=0)[-1],
        fused=tap > (count - 1) // 4 * 4,
    )


def _triangle(x: np.ndarray) -> np.ndarray:
    """Weight at a distance of `x` pixels, bilinear."""
    return np.maximum(np.float32(1) - x, np.float32(0))


def _cubic(x: np.ndarray) -> np.ndarray:
    """Weight at a distance of `x` pixels, bicubic with a = -0.5; every step is fused."""
    near = _multiply_add(_multiply_add(x, 1.5, -2.5) * x, x, 1)
    far = _multiply_add(_multiply_add(_multiply_add(x, -0.5, 2.5), x, -4), x, 2)
    return np.where(x < 1, near, np.where(x < 2, far, np.float32(0)))


def _near_curve(x: np.ndarray) -> np.ndarray:
    """Weight up to 1 pixel away, bicubic with a = -0.75; only the first step is fused."""
    return _multiply_add(x, 1.25, -2.25) * x * x + np.float32(1)


def _far_curve(x: np.ndarray) -> np.ndarray:
    """Weight 1 to 2 pixels away, bicubic with a = -0.75; the last step is not fused."""
    return _multiply_add(_multiply_add(x, -0.75, 3.75), x, -6) * x + np.float32(3)


def _multiply_add(x: np.ndarray, factor: np.ndarray | float, term: float) -> np.ndarray:
    """Return x * factor + term, rounded to float32 only once."""
    return (np.multiply(x, factor, dtype=np.float64) + term).astype(np.float32)
