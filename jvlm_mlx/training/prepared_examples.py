"""Rows that have been checked and cut into tokens; pixels are still in their files."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..processing.tiling import ImageLayout
from ..processing.processor import Processor
from .data_limits import DataLimits
from .mixture import TEXT


@dataclass(frozen=True, eq=False, slots=True)
class Picture:
    """A picture that is not opened yet."""

    source: str
    """Path, or `data:` or `file:` address."""
    size: tuple[int, int]
    """Width and height in pixels."""
    layout: ImageLayout
    """How it will be tiled."""


@dataclass(frozen=True, eq=False, slots=True)
class TrainingRow:
    """One conversation. N tokens before its pictures are put in."""

    line: int
    """In its file, from 1."""
    token_ids: NDArray[np.int32]
    """(N,) one placeholder for every picture."""
    labels: NDArray[np.int32]
    """(N,) the token to be predicted in this place, from the ones before it; -1: nothing."""
    pictures: tuple[Picture, ...]

    @property
    def length(self) -> int:
        """Tokens with pictures put in."""
        return len(self.token_ids) + sum(one.layout.num_tokens - 1 for one in self.pictures)

    @property
    def num_tiles(self) -> int:
        """Tiles of all pictures."""
        return sum(one.layout.num_tiles for one in self.pictures)


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
        """Whether no row has a picture."""
        return self.kind == TEXT


@dataclass(frozen=True, eq=False)
class TrainingData:
    """All rows of a mixture, with what they have been prepared for."""

    sources: tuple[PreparedSource, ...]
    processor: Processor
    limits: DataLimits
    digest: str
    """The same for the same rows, sources, settings of rows and checkpoint's way to read them;
    files of pictures are not looked into."""

    @property
    def num_rows(self) -> int:
        """Rows of all sources."""
        return sum(len(source.rows) for source in self.sources)

    @property
    def has_text(self) -> bool:
        """Whether a source has no pictures."""
        return any(source.is_text for source in self.sources)

    @property
    def has_pictures(self) -> bool:
        """Whether a source has pictures."""
        return not all(source.is_text for source in self.sources)
