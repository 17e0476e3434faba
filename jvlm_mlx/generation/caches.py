"""What requests share: features of encoded images, and the KV cache of prompts.

Any thread may use them. Their locks are the interpreter's own re-entrant ones: Ctrl-C cannot
leave one held, and a finalizer that runs inside a cache finds a cache that stores nothing.
"""

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import mlx.core as mx

from .. import _mlx_lm
from ..errors import RequestError
from ..model import Model
from ..processing.image_digests import ImageDigests
from .memory import default_limit
from .model_identity import model_key
from .prompt import PromptKey

DEFAULT_MAX_BYTES = 1_000_000_000
_FEATURE_FRACTION = 8
"""The features of an image need a small fraction of what its KV cache needs."""
_NO_LIMIT = 2**31
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class CacheStats:
    """Contents of a cache, and how useful it has been."""

    entries: int
    nbytes: int
    """Device memory of all entries."""
    max_bytes: int
    hits: int
    misses: int
    evictions: int
    """Entries that were dropped for want of memory."""


class FeatureCache:
    """Features of encoded images by model and image digest; the least recently used leave first.

    What is put in must have been evaluated.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.RLock()
        self._features: OrderedDict[tuple[str, str], mx.array] = OrderedDict()
        self._hits = self._misses = self._evictions = 0

    @property
    def nbytes(self) -> int:
        """Device memory in use."""
        with self._lock:
            return sum(features.nbytes for features in self._features.values())

    def get(self, model: str, digest: str) -> mx.array | None:
        """Return the features (N, hidden_size) of an image, or None."""
        with self._lock:
            features = self._features.get((model, digest))
            if features is None:
                self._misses += 1
                return None
            self._hits += 1
            self._features.move_to_end((model, digest))
            return features

    def put(self, model: str, digest: str, features: mx.array) -> None:
        """Store the features of an image, if they are not larger than the whole cache."""
        with self._lock:
            if features.nbytes > self._max_bytes or (model, digest) in self._features:
                return
            self._features[model, digest] = features
            self.shrink(_room(self._max_bytes, self.nbytes))

    def shrink(self, nbytes: int) -> None:
        """Drop features, the least recently used first, until the rest takes at most `nbytes`."""
        with self._lock:
            while self._features and self.nbytes > nbytes:
                self._features.popitem(last=False)
                self._evictions += 1

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._features.clear()

    def stats(self) -> CacheStats:
        """Return contents and counts."""
        with self._lock:
            return CacheStats(
                entries=len(self._features),
                nbytes=self.nbytes,
                max_bytes=self._max_bytes,
                hits=self._hits,
                misses=self._misses,
                evictions=self._evictions,
            )


class LayerState(NamedTuple):
    """Keys and values of one layer, (1, H, at least L, D) each; what follows L is not used."""

    keys: mx.array
    values: mx.array


class _Entry:
    """All layers of one prompt, with the methods that mlx-lm's `LRUPromptCache` calls.

    mlx-lm counts elements where a KV cache counts tokens. So an entry is never trimmed there:
    how much of it is used follows from how many elements were found.
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
    """Finds the longest prefix of a prompt whose KV cache is stored.

    Prompts are stored and searched by mlx-lm's `LRUPromptCache`. What is put in must have been
    evaluated.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.RLock()
        self._in_use = False
        self._prompts = _mlx_lm.LRUPromptCache(max_size=_NO_LIMIT)
        self._hits = self._misses = self._evictions = 0

    @property
    def nbytes(self) -> int:
        """Device memory in use."""
        return int(self._prompts.nbytes)

    def fetch(self, model: str, key: PromptKey) -> tuple[PromptKey, list[LayerState]]:
        """Return the longest stored prefix of a prompt, and its KV cache.

        At least the last element is left out, for the model needs something to run on. Without
        any stored prefix, the key is empty.
        """

        nothing: tuple[PromptKey, list[LayerState]] = (key.first(0), [])

        def search() -> tuple[PromptKey, list[LayerState]]:
            found, rest = self._prompts.fetch_nearest_cache(model, list(key.elements))
            reused = 0 if found is None else min(len(key) - len(rest), len(key) - 1)
            if reused <= 0:
                self._misses += 1
                return nothing
            self._hits += 1
            return key.first(reused), list(found[0].layers)

        return self._alone(search, nothing)

    def insert(self, model: str, key: PromptKey, layers: Sequence[LayerState]) -> None:
        """Store the KV cache of a prompt; stored prefixes of it are dropped.

        Nothing is stored of a prompt that is larger than the whole cache.
        """
        entry = _Entry(layers)
        if not len(key) or entry.nbytes > self._max_bytes:
            return
        self._alone(lambda: self._prompts.insert_cache(model, list(key.elements), [entry]), None)
        self.shrink(_room(self._max_bytes, self.nbytes))

    def shrink(self, nbytes: int) -> None:
        """Drop prompts, the oldest first, until the rest takes at most `nbytes`."""

        def drop() -> None:
            count = len(self._prompts)
            self._prompts.trim_to(n_bytes=nbytes)
            self._evictions += count - len(self._prompts)

        self._alone(drop, None)

    def clear(self) -> None:
        """Drop everything."""
        self._alone(lambda: self._prompts.trim_to(n_sequences=0), None)

    def stats(self) -> CacheStats:
        """Return contents and counts."""
        return CacheStats(
            entries=len(self._prompts),
            nbytes=self.nbytes,
            max_bytes=self._max_bytes,
            hits=self._hits,
            misses=self._misses,
            evictions=self._evictions,
        )

    def _alone(self, action: Callable[[], _T], otherwise: _T) -> _T:
        """Run one action at a time; one that interrupts another in its thread does nothing.

        mlx-lm's cache is several structures that must agree. When an action ends in the middle,
        by Ctrl-C perhaps, all of it is dropped.
        """
        with self._lock:
            if self._in_use:
                return otherwise
            try:
                self._in_use = True
                return action()
            except BaseException:
                self._prompts = _mlx_lm.LRUPromptCache(max_size=_NO_LIMIT)
                raise
            finally:
                self._in_use = False


class GenerationCaches:
    """Caches that any number of requests share, so that nothing is computed twice.

    Pass the same object to requests of several models and from several threads. An image seen
    before does not go through the vision tower again, nor is its file decoded, and of a prompt
    only what follows its longest stored prefix is prefilled. Answers are the same as without
    caches. On a GPU, the caches shrink when MLX's memory nears what the system recommends.

    Args:
        max_bytes: limit on device memory for all of it: an eighth for features of images, the
            rest for KV caches. The oldest leave first.

    Raises:
        RequestError: `max_bytes` is negative.
    """

    def __init__(self, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        if max_bytes < 0:
            raise RequestError(f"max_bytes is {max_bytes}; it must not be negative")
        self.max_bytes = max_bytes
        self.features = FeatureCache(max_bytes // _FEATURE_FRACTION)
        self.prefixes = PrefixCache(max_bytes - max_bytes // _FEATURE_FRACTION)
        self.images = ImageDigests()
        self._scope = ""

    def scoped(self, scope: str) -> "GenerationCaches":
        """Return the same caches as one of several parties sees them.

        They share the memory, but nothing that is stored in one scope is found in another. So
        how long an answer takes does not tell what others have asked.
        """
        view = copy.copy(self)
        view._scope = scope
        view.images = self.images.scoped(scope)
        return view

    def key(self, model: Model) -> str:
        """Return what entries of a model are stored under."""
        return f"{self._scope}{model_key(model)}"

    @property
    def nbytes(self) -> int:
        """Device memory in use."""
        return self.features.nbytes + self.prefixes.nbytes

    def stats(self) -> dict[str, CacheStats]:
        """Return the statistics of `features` and `prefixes`."""
        return {"features": self.features.stats(), "prefixes": self.prefixes.stats()}

    def shrink(self, nbytes: int) -> None:
        """Drop prompts, the oldest first, and then images, until all takes `nbytes`."""
        self.prefixes.shrink(nbytes - self.features.nbytes)
        self.features.shrink(nbytes)

    def private(self) -> "GenerationCaches":
        """Return empty caches of the same size, for what must not reach other requests."""
        return GenerationCaches(self.max_bytes)

    def clear(self) -> None:
        """Drop everything and free its memory."""
        self.features.clear()
        self.prefixes.clear()
        self.images.clear()


def _room(max_bytes: int, held: int) -> int:
    """Return how much a cache may hold now: less than `max_bytes` if the GPU's memory runs out."""
    limit = default_limit()
    if limit is None:  # no GPU
        return max_bytes
    excess = mx.get_active_memory() - limit
    return max_bytes if excess <= 0 else min(max_bytes, max(held - excess, 0))
