"""What a cache tells about itself."""

from dataclasses import dataclass


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
    """Entries that left because there was no room for them."""
