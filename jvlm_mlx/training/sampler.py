"""Which rows make up which batch: random access by step, the same for the same seed."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, RequestError
from .prepared_examples import PreparedSource, TrainingData

Places = NDArray[np.int64]
"""(n, 2) source and row within it."""

_GOLDEN = 0x9E3779B97F4A7C15
"""2^64 over the golden ratio: multiples of it, modulo 2^64, spread more evenly than any other."""
_SOURCES, _BATCHES, _ROWS = range(3)
"""What a random stream is for."""


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How rows become batches.

    Raises:
        RequestError: a setting is out of range.
    """

    batch_size: int
    """Rows of a batch."""
    seed: int
    """Of the order of everything."""
    text_share: float
    """Share of the rows that have no image: 0 without text sources, 1 with nothing else."""
    single_source: bool
    """Whether all rows of a batch are of one source."""
    bucket_batches: int
    """Batches that are drawn at a time, so that rows of like size can share one; 1: none."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "bucket_batches"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name} {getattr(self, name)} must be at least 1")
        if not 0 <= self.seed < 2**64:
            raise RequestError(f"seed {self.seed} must be at least 0 and below 2**64")
        if not 0 <= self.text_share <= 1:
            raise RequestError(f"text_share {self.text_share} must be between 0 and 1")


class BatchPlan(ABC):
    """Names the rows of every batch."""

    steps_per_epoch: int
    """Batches that hold as many rows as there are."""

    @abstractmethod
    def rows(self, step: int) -> Places:
        """Return the rows of a batch, (batch_size, 2): source and row within it."""


class MixturePlan(BatchPlan):
    """Draws rows from all sources by their weights, without end.

    A low-discrepancy sequence says which source is next, so shares are met at all times and not
    only in the long run. Every source is gone through in a random order, all of it before any row
    comes again, and then in another order.

    A few batches at a time, a window, are drawn together and then shuffled. Of a single source, no
    window goes beyond the end of an epoch, so that an epoch's batches have all its rows. Several
    sources are each in an epoch of their own, and all windows are of the same length.
    """

    def __init__(self, data: TrainingData, config: SamplerConfig) -> None:
        """Plan.

        Raises:
            DataError: `text_share` asks for rows that there are none of, or leaves some unused.
        """
        self._config = config
        self._sources = data.sources
        self.steps_per_epoch = -(-data.num_rows // config.batch_size)
        # How many batches the lengths of windows repeat after.
        self._period = self.steps_per_epoch if len(data.sources) == 1 else config.bucket_batches
        self._ends = np.cumsum(shares(data, config.text_share))
        self._ends[-1] = 1.0
        self._offset = self._random(_SOURCES).integers(0, 2**64, dtype=np.uint64)
        self._window = lru_cache(maxsize=2)(self._make_window)
        self._order = lru_cache(maxsize=2 * len(data.sources) + 2)(self._make_order)
        self._counted = (0, np.zeros(len(data.sources), np.int64))

    def rows(self, step: int) -> Places:
        """Return the rows of a batch, (batch_size, 2): source and row within it."""
        period, step = divmod(step, self._period)
        window, place = divmod(step, self._config.bucket_batches)
        return self._window(period * self._windows_of_period + window)[place]

    @property
    def _windows_of_period(self) -> int:
        return -(-self._period // self._config.bucket_batches)

    def _random(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([self._config.seed, *purpose])

    def _make_window(self, window: int) -> list[Places]:
        """Draw the rows of a few batches and share them out."""
        config = self._config
        period, of_period = divmod(window, self._windows_of_period)
        start = of_period * config.bucket_batches
        stop = min(start + config.bucket_batches, self._period)
        per_draw = config.batch_size if config.single_source else 1
        per_batch = config.batch_size // per_draw
        first = (period * self._period + start) * per_batch
        chosen = self._chosen(first, first + (stop - start) * per_batch)
        taken = self._taken(first)
        batches: list[Places] = []
        pool = []
        for number, source in enumerate(self._sources):
            count = int(np.count_nonzero(chosen == number)) * per_draw
            drawn = self._draw(number, int(taken[number]) * per_draw, count)
            places = np.stack([np.full(count, number), drawn], axis=1)
            sizes = source.sizes[drawn]
            if config.single_source:
                batches += cut_by_size(places, sizes, config.batch_size)
            else:
                pool.append((places, sizes))
        if pool:
            batches = cut_by_size(
                np.concatenate([places for places, _ in pool]),
                np.concatenate([sizes for _, sizes in pool]),
                config.batch_size,
            )
        order = self._random(_BATCHES, window).permutation(len(batches))
        return [batches[place] for place in order]

    def _chosen(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the source of every draw from `start` up to `stop`."""
        turns = np.arange(start, stop, dtype=np.uint64) * np.uint64(_GOLDEN) + self._offset
        # The upper 53 bits as a number from 0 up to 1.
        spread = (turns >> np.uint64(11)) * 2.0**-53
        return np.searchsorted(self._ends, spread, side="right").astype(np.int64)

    def _taken(self, draws: int) -> NDArray[np.int64]:
        """Return how often each source comes among the first draws."""
        start, counts = self._counted
        if start > draws:
            start, counts = 0, np.zeros(len(self._sources), np.int64)
        for begin in range(start, draws, 2**20):
            chosen = self._chosen(begin, min(begin + 2**20, draws))
            counts = counts + np.bincount(chosen, minlength=len(self._sources))
        self._counted = (draws, counts)
        return counts

    def _draw(self, number: int, start: int, count: int) -> NDArray[np.int64]:
        """Return the next rows of a source, from the `start`-th that it ever gave."""
        size = len(self._sources[number].rows)
        drawn = []
        while count:
            epoch, place = divmod(start, size)
            some = self._order(number, epoch)[place : place + count]
            drawn.append(some)
            start += len(some)
            count -= len(some)
        return np.concatenate(drawn) if drawn else np.zeros(0, np.int64)

    def _make_order(self, number: int, epoch: int) -> NDArray[np.int64]:
        return self._random(_ROWS, number, epoch).permutation(len(self._sources[number].rows))


class FixedPlan(BatchPlan):
    """All rows once, source after source in the order of their files: for validation.

    Rows of like size share a batch among those of `bucket_batches` batches.
    """

    def __init__(self, data: TrainingData, batch_size: int, bucket_batches: int) -> None:
        places = np.array(
            [
                (number, row)
                for number, source in enumerate(data.sources)
                for row in range(len(source.rows))
            ],
            np.int64,
        )
        sizes = np.concatenate([source.sizes for source in data.sources])
        step = batch_size * bucket_batches
        self._batches = [
            batch
            for start in range(0, len(places), step)
            for batch in cut_by_size(
                places[start : start + step], sizes[start : start + step], batch_size
            )
        ]
        self.steps_per_epoch = len(self._batches)

    def rows(self, step: int) -> Places:
        """Return the rows of a batch: batch_size of them, fewer in the last one."""
        return self._batches[step]


def shares(data: TrainingData, text_share: float) -> NDArray[np.float64]:
    """Return the share of each source among all rows that are drawn.

    Raises:
        DataError: `text_share` asks for rows that there are none of, or leaves some unused.
    """
    if text_share > 0 and not data.has_text:
        raise DataError(
            f"text_share is {text_share}, but no source has rows without images; add one of kind"
            " text, or set it to 0"
        )
    if text_share == 0 and data.has_text:
        raise DataError(
            "text_share is 0, but there are rows without images that would never be used; set it"
            " above 0, or leave the text sources out"
        )
    if text_share < 1 and not data.has_images:
        raise DataError(
            f"text_share is {text_share}, but no source has images; set it to 1, or add images"
        )
    if text_share == 1 and data.has_images:
        raise DataError(
            "text_share is 1, but there are rows with images that would never be used; set it"
            " below 1, or leave the image sources out"
        )
    total = {kind: _weight(data.sources, kind) for kind in (True, False)}
    of_kind = {True: text_share, False: 1 - text_share}
    return np.array(
        [of_kind[source.is_text] * source.weight / total[source.is_text] for source in data.sources]
    )


def _weight(sources: Sequence[PreparedSource], is_text: bool) -> float:
    return sum(source.weight for source in sources if source.is_text == is_text)


def cut_by_size(places: Places, sizes: NDArray[np.int64], batch_size: int) -> list[Places]:
    """Cut rows into batches, those of like tiles and length together.

    Args:
        places: (n, 2) source and row.
        sizes: (n, 2) tiles and length.
        batch_size: rows of a batch; the last may have fewer.
    """
    order = np.lexsort((sizes[:, 1], sizes[:, 0]))
    return [
        places[order[start : start + batch_size]] for start in range(0, len(places), batch_size)
    ]
