"""Figures that can be resampled: bootstrap intervals, paired differences and the sign test."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import comb
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DRAWS = 1000
_CONFIDENCE = 0.95
_MAX_CELLS = 4_000_000
"""Resampled cells held at once: 32 MB."""


class Total(Protocol):
    """A figure of a benchmark and its bootstrap distribution."""

    @property
    def value(self) -> float:
        """The figure on the published scale; NaN where nothing was measured."""

    def draws(self, name: str, seed: int) -> Array:
        """Return `DRAWS` figures of resampled units, the same for the same name and seed."""


@dataclass(frozen=True)
class Figure:
    """A figure computed from the sums of some columns over its units (questions, images, ...).

    Units are resampled with replacement, so two runs over the same units in the same order are
    resampled alike, and their draws can be subtracted.
    """

    columns: Array
    """U units x K columns."""
    formula: Callable[[Array], Array]
    """... x K column sums to ... figures."""

    @property
    def value(self) -> float:
        """The figure of all units."""
        return float(self.formula(self.columns.sum(0))) if len(self.columns) else float("nan")

    def draws(self, name: str, seed: int) -> Array:
        """Return figures of resampled units."""
        units, width = self.columns.shape
        if not units:
            return np.full(DRAWS, np.nan)
        random = np.random.default_rng([seed, zlib.crc32(name.encode())])
        step = max(1, _MAX_CELLS // (units * width))
        figures = []
        for start in range(0, DRAWS, step):
            chosen = random.integers(0, units, (min(step, DRAWS - start), units))
            figures.append(self.formula(self.columns[chosen].sum(1)))
        return np.concatenate(figures)


@dataclass(frozen=True)
class Combined:
    """The sum or mean of figures whose units are resampled apart from each other."""

    parts: Sequence[Total]
    mean: bool = field(kw_only=True)

    @property
    def value(self) -> float:
        """The sum or mean of the parts."""
        return float(self._combine(np.array([[part.value] for part in self.parts]))[0])

    def draws(self, name: str, seed: int) -> Array:
        """Return sums or means of the parts' draws."""
        return self._combine(
            np.stack([part.draws(f"{name}/{n}", seed) for n, part in enumerate(self.parts)])
        )

    def _combine(self, figures: Array) -> Array:
        return figures.mean(0) if self.mean else figures.sum(0)


def ratio(sums: Array) -> Array:
    """Return the first column's sum by the second's; NaN where the second is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])


def percent(scores: Sequence[float]) -> Figure:
    """Return the mean of scores in percent, each score a unit."""
    columns = np.stack([np.asarray(scores, np.float64), np.ones(len(scores))], 1)
    return Figure(columns, lambda sums: 100 * ratio(sums))


def count(hits: Sequence[float]) -> Figure:
    """Return the sum of hits, each a unit: points."""
    return Figure(
        np.asarray(hits, np.float64).reshape(-1, 1), lambda sums: np.asarray(sums[..., 0])
    )


def interval(draws: Array) -> list[float] | None:
    """Return low and high of the 95 % percentile interval of draws, or None without draws."""
    known = draws[~np.isnan(draws)]
    if not len(known):
        return None
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return [float(low), float(high)]


def sign_test(better: int, worse: int) -> float:
    """Return the two-sided p value of the exact sign test: changes up and down equally likely."""
    changed = better + worse
    if not changed:
        return 1.0
    tail = sum(comb(changed, k) for k in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / 2**changed)
