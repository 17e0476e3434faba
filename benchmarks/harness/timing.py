"""Timing: warm-up, repeats, median and spread; candidates interleaved, memory beside it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import mlx.core as mx


@dataclass(frozen=True)
class Timing:
    """Wall-clock times of repeats of the same work."""

    seconds: tuple[float, ...]
    """Of each repeat."""
    peak_bytes: int
    """Most memory MLX held meanwhile, beyond what it held before."""

    @property
    def median(self) -> float:
        """The time to report."""
        return median(self.seconds)

    @property
    def spread(self) -> float:
        """From the shortest to the longest repeat, as a fraction of the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median

    def summary(self) -> dict[str, float]:
        """Return the numbers for a JSON line."""
        return {
            "seconds": self.median,
            "fastest": min(self.seconds),
            "spread": self.spread,
            "peak_gb": self.peak_bytes / 1e9,
        }

    def __str__(self) -> str:
        return f"{readable_seconds(self.median)} ± {self.spread / 2:.0%}"


def readable_seconds(seconds: float) -> str:
    """Return a time with three digits and its unit."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def timed(work: Callable[[], Any]) -> tuple[float, int]:
    """Return seconds and peak memory of some work; arrays that it returns are evaluated."""
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    start = time.perf_counter()
    mx.eval(work())
    mx.synchronize()
    return time.perf_counter() - start, mx.get_peak_memory() - before


def measure(
    candidates: Mapping[str, Callable[[], Any]], *, warmup: int = 1, repeats: int = 3
) -> dict[str, Timing]:
    """Time candidates in turn, A B A B, so that what else the machine does hits them alike.

    Args:
        candidates: name to function; arrays that one returns are evaluated.
        warmup: rounds that do not count.
        repeats: rounds that do.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    peaks = dict.fromkeys(candidates, 0)
    for turn in range(warmup + repeats):
        for name, work in candidates.items():
            taken, peak = timed(work)
            if turn >= warmup:
                seconds[name].append(taken)
                peaks[name] = max(peaks[name], peak)
    return {name: Timing(tuple(seconds[name]), peaks[name]) for name in candidates}
