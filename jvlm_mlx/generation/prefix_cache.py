"""Keys and values of prompts that have been read, found again by their beginnings."""

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
from mlx_lm.models.cache import LRUPromptCache

from .cache_stats import CacheStats
from .prompt_key import PromptKey

_ANY_NUMBER = 2**31


class LayerState(NamedTuple):
    """Keys and values of one layer, (1, H, at least L, D) each; what follows L is not used."""

    keys: mx.array
    values: mx.array


class _Entry:
    """All layers of one prompt, in the shape of mlx-lm's caches.

    mlx-lm counts elements where a cache counts tokens. So an entry is never shortened there:
    how much of it is meant follows from how many elements were found.
    """

    def __init__(self, layers: Sequence[LayerState]) -> None:
        self.layers = tuple(layers)

    @property
    def nbytes(self) -> int:
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)

    def is_trimmable(self) -> bool:
        return True

    def trim(self, count: int) -> int:
        return count

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Entry":
        return self  # nothing writes into its arrays


class PrefixCache:
    """Finds the longest beginning of a prompt that has been read before.

    Prompts are stored and searched by mlx-lm's `LRUPromptCache`. May be used from any thread.
    What is put in must have been evaluated.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._prompts = LRUPromptCache(max_size=_ANY_NUMBER)
        self._hits = self._misses = self._evictions = 0

    def fetch(self, model: str, key: PromptKey) -> tuple[PromptKey, list[LayerState]]:
        """Return the longest known beginning of a prompt, and its states.

        At least the last element is left, for there must be something to read. Without any
        known beginning, the key is empty.
        """
        with self._lock:
            found, rest = self._prompts.fetch_nearest_cache(model, list(key.elements))
            known = 0 if found is None else min(len(key) - len(rest), len(key) - 1)
            if known <= 0:
                self._misses += 1
                return key.first(0), []
            self._hits += 1
        return key.first(known), list(found[0].layers)

    def insert(self, model: str, key: PromptKey, layers: Sequence[LayerState]) -> None:
        """Keep the states of a prompt; those of its own beginnings are dropped.

        Nothing is kept of a prompt that is larger than the whole cache.
        """
        entry = _Entry(layers)
        if not len(key) or entry.nbytes > self._max_bytes:
            return
        with self._lock:
            self._prompts.insert_cache(model, list(key.elements), [entry])
        self.shrink(self._max_bytes)

    def shrink(self, nbytes: int) -> None:
        """Drop prompts, the oldest first, until the rest takes at most `nbytes`."""
        with self._lock:
            count = len(self._prompts)
            self._prompts.trim_to(n_bytes=nbytes)
            self._evictions += count - len(self._prompts)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._prompts.trim_to(n_sequences=0)

    def stats(self) -> CacheStats:
        """Return contents and counts."""
        with self._lock:
            return CacheStats(
                entries=len(self._prompts),
                nbytes=self._prompts.nbytes,
                max_bytes=self._max_bytes,
                hits=self._hits,
                misses=self._misses,
                evictions=self._evictions,
            )
