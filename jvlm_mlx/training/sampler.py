"""Which examples make up which batch: random access by number, the same for the same seed.

An epoch is as many examples as there are. Each of its examples is drawn from a source by weight;
within a source every example comes once before any comes again. The epoch is then shuffled, and
within a few batches at a time examples of like size are put together.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .dataset import TrainingData
from .examples import TEXT
from .training_config import TrainingConfig

Indices = NDArray[np.int64]
"""(n,) examples of the data."""

_SOURCES, _EXAMPLES, _BATCHES = range(3)
"""What a random stream is for."""


class Sampler:
    """Names the examples of every batch of a run, without end."""

    def __init__(self, data: TrainingData, config: TrainingConfig) -> None:
        """Sort the examples into groups, each with its fraction of what is drawn.

        Raises:
            DataError: `text_fraction` asks for examples that there are none of, or leaves some
                unused.
        """
        self._data = data
        self._config = config
        self.batches_per_epoch = -(-len(data.examples) // config.batch_size)
        # Batches that begin the run with examples of one source each.
        self._single_source_batches = config.single_source_iters * config.grad_accumulation_steps
        by_source = config.single_source or self._single_source_batches > 0
        self._groups, fractions = _groups(data, config.text_fraction, by_source)
        self._ends = np.cumsum(fractions)
        self._ends[-1] = 1.0
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self._order = lru_cache(maxsize=2 * len(self._groups) + 2)(self._make_order)

    def __getitem__(self, number: int) -> Indices:
        """Return the examples of a batch, counted from 0: (batch_size,)."""
        if number < 0:
            raise IndexError(f"batch {number} is below 0")
        epoch, place = divmod(number, self.batches_per_epoch)
        single_source = self._config.single_source or number < self._single_source_batches
        return self._epoch(epoch, single_source)[place]

    def _random(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([self._config.seed, *purpose])

    def _make_epoch(self, epoch: int, single_source: bool) -> list[Indices]:
        """Return the batches of an epoch."""
        batch_size = self._config.batch_size
        bucket = batch_size * self._config.bucket_batches
        draws = self.batches_per_epoch * (1 if single_source else batch_size)
        examples_per_draw = batch_size if single_source else 1
        counts = self._counts(epoch, draws)
        start, stop = (counts[:end].sum(axis=0) * examples_per_draw for end in (-1, None))
        drawn = [self._draw(*bounds) for bounds in zip(range(len(start)), start, stop, strict=True)]
        random = self._random(_BATCHES, epoch)
        # Batches are of a source, or of all of them; a source's examples are in random order.
        pools = drawn if single_source else [random.permutation(np.concatenate(drawn))]
        buckets = [
            _batches_by_size(pool[begin : begin + bucket], self._data.sizes, batch_size)
            for pool in pools
            for begin in range(0, len(pool), bucket)
        ]
        if single_source:
            buckets = [[batch for bucket in buckets for batch in bucket]]
        return [bucket[place] for bucket in buckets for place in random.permutation(len(bucket))]

    def _counts(self, epoch: int, draws: int) -> Indices:
        """Return the draws of each group in every epoch up to this one: (epoch + 1, groups).

        Draws are spread evenly over the fractions from a random offset. So each count is within
        one of what it should be, and small groups come in their turn.
        """
        offsets = self._random(_SOURCES).random(epoch + 1)[:, None]
        ends = np.ceil(draws * self._ends - offsets).astype(np.int64)
        ends[:, -1] = draws
        return np.diff(ends, axis=1, prepend=0)

    def _draw(self, group: int, start: int, stop: int) -> Indices:
        """Return the examples that a group gives from its `start`-th draw of the run on."""
        size = len(self._groups[group])
        orders = [self._order(group, turn) for turn in range(start // size, -(-stop // size))]
        if not orders:
            return np.zeros(0, np.int64)
        begin = start - start // size * size
        return np.concatenate(orders)[begin : begin + stop - start]

    def _make_order(self, group: int, turn: int) -> Indices:
        return self._random(_EXAMPLES, group, turn).permutation(self._groups[group])


def ordered_batches(data: TrainingData, config: TrainingConfig) -> list[Indices]:
    """Return batches that hold every example once, in the order of the files: for validation.

    Examples of like size share a batch among those of `bucket_batches` batches.
    """
    step = config.batch_size * config.bucket_batches
    everything = np.arange(len(data.examples))
    return [
        batch
        for start in range(0, len(everything), step)
        for batch in _batches_by_size(
            everything[start : start + step], data.sizes, config.batch_size
        )
    ]


def _groups(
    data: TrainingData, text_fraction: float | None, by_source: bool
) -> tuple[list[Indices], list[float]]:
    """Return the examples of each group, and its fraction of all that are drawn.

    A group is a source. A single file is two groups, with and without images, if they are drawn
    by fraction or apart, and else one.
    """
    has_images = np.array([bool(example.images) for example in data.examples])
    if len(data.sources) == 1:
        if text_fraction is None and not by_source:
            return [np.arange(len(data.examples))], [1.0]
        groups = [np.flatnonzero(has_images), np.flatnonzero(~has_images)]
        weights = [float(len(group)) for group in groups]
        is_text = [False, True]
    else:
        of_source = np.array([example.source for example in data.examples])
        groups = [np.flatnonzero(of_source == number) for number in range(len(data.sources))]
        weights = [source.weight for source in data.sources]
        is_text = [source.kind == TEXT for source in data.sources]
    kinds = {
        kind: sum(weight for weight, text in zip(weights, is_text, strict=True) if text == kind)
        for kind in (True, False)
    }
    if text_fraction is None:
        text_fraction = kinds[True] / sum(kinds.values())
    _check_text_fraction(text_fraction, has_text=kinds[True] > 0, has_images=kinds[False] > 0)
    of_kind = {True: text_fraction, False: 1 - text_fraction}
    chosen = [
        (group, of_kind[text] * weight / kinds[text])
        for group, weight, text in zip(groups, weights, is_text, strict=True)
        if len(group)
    ]
    return [group for group, _ in chosen], [fraction for _, fraction in chosen]


def _check_text_fraction(fraction: float, *, has_text: bool, has_images: bool) -> None:
    problem = None
    if fraction > 0 and not has_text:
        problem = "no source has examples without images; add one of kind text, or set it to 0"
    elif fraction == 0 and has_text:
        problem = (
            "there are examples without images that would never be used; set it above 0, or leave"
            " the text sources out"
        )
    elif fraction < 1 and not has_images:
        problem = "no source has images; set it to 1, or add images"
    elif fraction == 1 and has_images:
        problem = (
            "there are examples with images that would never be used; set it below 1, or leave the"
            " image sources out"
        )
    if problem:
        raise DataError(f"text_fraction is {fraction}, but {problem}")


def _batches_by_size(indices: Indices, sizes: NDArray[np.int64], batch_size: int) -> list[Indices]:
    """Cut examples (n,) into batches, those of like tiles and length together: `sizes` has both,
    (examples, 2) of all examples. The last batch may have fewer.
    """
    tiles, lengths = sizes[indices].T
    order = indices[np.lexsort((lengths, tiles))]
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
