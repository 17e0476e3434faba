"""Reads the demo's images back from their pixels, to hold labels against."""

import itertools

import numpy as np
from PIL import Image
from skimage.measure import label, regionprops

from jvlm_mlx.demo.drawing import COLOR_INKS, SMALL_PRINT, draw_text
from jvlm_mlx.demo.phrases import COLORS

PLACES = (
    "top left", "top", "top right", "left", "middle", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip
PAPERS = (255, 242)
LABELS = ("NAME", "CITY", "NO")


def ink_of(image):
    """(height, width) True where something dark or colored is, grid lines and paper aside."""
    return np.asarray(image).min(axis=2) < 150


def print_of(image):
    """(height, width) True where at least half of a pixel is printed on; red and yellow aside.

    All printing inks have 20 of red.
    """
    pixels = np.asarray(image).astype(float)
    paper = max(PAPERS, key=lambda gray: (pixels == gray).all(axis=2).sum())
    return (paper - pixels[..., 0]) / (paper - 20) > 0.5


def read_shapes(image, smallest=12):
    """Shapes, colors and cells, row by row, of everything at least `smallest` pixels wide."""
    pixels = np.asarray(image).astype(int)
    found = []
    for region in regionprops(label(ink_of(image), connectivity=2)):
        top, left, bottom, right = region.bbox
        if right - left < smallest or bottom - top < smallest:
            continue
        mask = region.image
        inside = pixels[top:bottom, left:right][mask]
        color = read_color(np.median(inside, axis=0))
        row, column = (
            int((start + end) / 2 // (size / 3))
            for start, end, size in (
                (top, bottom, image.height), (left, right, image.width)
            )
        )  # fmt: skip
        found.append((3 * row + column, read_shape(mask), color))
    return [(shape, color, PLACES[cell]) for cell, shape, color in sorted(found)]


def read_color(ink):
    distances = [np.abs(np.array(COLOR_INKS[color]) - ink).sum() for color in COLORS]
    return COLORS[int(np.argmin(distances))]


def read_shape(mask):
    """Name a filled shape by how much of its box is full, and where."""
    height, _ = mask.shape
    if mask.mean() > 0.93:
        return "square"
    if mask.mean() > 0.7:
        return "circle"
    if mask[-2].mean() > 0.8:
        return "triangle"
    return "cross" if mask[height // 2].mean() > 0.95 else "star"


def lines_of(ink):
    """Lines of print: (top, bottom) of each run of rows with ink."""
    return _runs(ink.any(axis=1))


def words_of(ink, gap):
    """Words of a line: (left, right), at least `gap` pixels between them."""
    words = []
    for left, right in _runs(ink.any(axis=0)):
        if words and left - words[-1][1] < gap:
            words[-1] = (words[-1][0], right)
        else:
            words.append((left, right))
    return words


def prints(ink, text, sizes=(SMALL_PRINT,)):
    """Whether this ink, cut to its box, is this text."""
    ink = _cut(ink)
    # On the same paper, for what half a pixel is depends on it.
    for size, paper in itertools.product(sizes, PAPERS):
        image = Image.new("RGB", (len(text) * size * 2, size * 3), (paper,) * 3)
        draw_text(image, text, (20, 20, 20), size, size * 2, size)
        if np.array_equal(ink, _cut(print_of(image))):
            return True
    return False


def _cut(ink):
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _runs(full):
    edges = np.flatnonzero(np.diff(np.concatenate([[0], full.astype(int), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
