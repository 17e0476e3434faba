"""Features of images that have been through the vision tower."""

import threading
from collections import OrderedDict

import mlx.core as mx

from .cache_stats import CacheStats


class FeatureCache:
    """Keeps features by model and digest of the image; the longest unused leave first.

    May be used from any thread. What is put in must have been evaluated.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._features: OrderedDict[tuple[str, str], mx.array] = OrderedDict()
        self._nbytes = self._hits = self._misses = self._evictions = 0

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
        """Keep the features of an image, if they are not larger than the whole cache."""
        with self._lock:
            if features.nbytes > self._max_bytes or (model, digest) in self._features:
                return
            self._features[model, digest] = features
            self._nbytes += features.nbytes
        self.shrink(self._max_bytes)

    def shrink(self, nbytes: int) -> None:
        """Drop features, the longest unused first, until the rest takes at most `nbytes`."""
        with self._lock:
            while self._features and self._nbytes > nbytes:
                _, oldest = self._features.popitem(last=False)
                self._nbytes -= oldest.nbytes
                self._evictions += 1

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._features.clear()
            self._nbytes = 0

    def stats(self) -> CacheStats:
        """Return contents and counts."""
        with self._lock:
            return CacheStats(
                entries=len(self._features),
                nbytes=self._nbytes,
                max_bytes=self._max_bytes,
                hits=self._hits,
                misses=self._misses,
                evictions=self._evictions,
            )
