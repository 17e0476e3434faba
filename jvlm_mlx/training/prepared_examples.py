"""Rows that have been checked and cut into tokens; pixels are still in their files."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..processing.processor import Processor
from ..processing.tiling import ImageLayout
from .data_limits import DataLimits
from .mixture import TEXT


@dataclass(frozen=True, eq=False, slots=True)
class ExampleImage:
    """An image that is not opened yet."""

    source: str
    """Path, or `data:` or `file:` address."""
    size: tuple[int, int]
    """Width and height in pixels."""
    layout: ImageLayout
    """How it will be tiled."""


@dataclass(frozen=True, eq=False, slots=True)
class TrainingRow:
    """One conversation. N tokens before its images are put in."""

    line: int
    """In its file, from 1."""
    token_ids: NDArray[np.int32]
    """(N,) one placeholder for every image."""
    labels: NDArray[np.int32]
    """(N,) the token to be predicted in this place, from the ones before it; -1: nothing."""
    images: tuple[ExampleImage, ...]

    @property
    def length(self) -> int:
        """Tokens with images put in."""
        return len(self.token_ids) + sum(one.layout.num_tokens - 1 for one in self.images)

    @property
    def num_tiles(self) -> int:
        """Tiles of all images."""
        return sum(one.layout.num_tiles for one in self.images)


@dataclass(frozen=True, eq=False)
class PreparedSource:
    """The rows of one source."""

    name: str
    path: Path
    kind: str
    """`captions`, `instructions` or `text`."""
    weight: float
    rows: tuple[TrainingRow, ...]
    sizes: NDArray[np.int64]
    """(rows, 2) tiles and length of each row."""

    @property
    def is_text(self) -> bool:
        """Whether no row has an image."""
        return self.kind == TEXT


@dataclass(frozen=True, eq=False)
class TrainingData:
    """All rows of a mixture, with what they have been prepared for."""

    sources: tuple[PreparedSource, ...]
    processor: Processor
    limits: DataLimits
    digest: str
    """The same for the same rows, sources, config of rows and checkpoint's way to read them;
    files of images are not looked into."""

    @property
    def num_rows(self) -> int:
        """Rows of all sources."""
        return sum(len(source.rows) for source in self.sources)

    @property
    def has_text(self) -> bool:
        """Whether a source has no images."""
        return any(source.is_text for source in self.sources)

    @property
    def has_images(self) -> bool:
        """Whether a source has images."""
        return not all(source.is_text for source in self.sources)
