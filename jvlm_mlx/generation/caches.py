"""The caches that answers share."""

from ..errors import RequestError
from .cache_stats import CacheStats
from .feature_cache import FeatureCache
from .prefix_cache import PrefixCache

DEFAULT_MAX_BYTES = 1_000_000_000
_FEATURE_SHARE = 8
"""Features of an image need a small part of what its keys and values need."""


class GenerationCaches:
    """Remembers images and prompts, so that nothing is computed twice.

    Hand the same object to any number of answers, also of several models and from several
    threads. An image seen before does not go through the vision tower again, and of a prompt
    only what follows its longest known beginning is read. Answers stay what they are without.

    Args:
        max_bytes: most device memory for all of it: an eighth for features of images, the
            rest for keys and values. The oldest leave first.

    Raises:
        RequestError: `max_bytes` is negative.
    """

    def __init__(self, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        if max_bytes < 0:
            raise RequestError(f"max_bytes is {max_bytes}; it must not be negative")
        self.features = FeatureCache(max_bytes // _FEATURE_SHARE)
        self.prefixes = PrefixCache(max_bytes - max_bytes // _FEATURE_SHARE)

    @property
    def nbytes(self) -> int:
        """Device memory in use."""
        return self.features.stats().nbytes + self.prefixes.stats().nbytes

    def stats(self) -> dict[str, CacheStats]:
        """Return the statistics of `features` and `prefixes`."""
        return {"features": self.features.stats(), "prefixes": self.prefixes.stats()}

    def shrink(self, nbytes: int) -> None:
        """Let go of prompts, the oldest first, and then of images, until all takes `nbytes`."""
        self.prefixes.shrink(nbytes - self.features.stats().nbytes)
        self.features.shrink(nbytes)

    def clear(self) -> None:
        """Forget everything and free its memory."""
        self.features.clear()
        self.prefixes.clear()
