"""Images recognized by their files: one seen before is not decoded again to be recognized."""

import copy
import threading
from collections import OrderedDict

MAX_ENTRIES = 10_000
"""With 200 bytes each, 2 MB."""


class ImageDigests:
    """Digests of images by digests of their files; the least recently used leave first.

    Any thread may use it.
    """

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self._max_entries = max_entries
        # Re-entrant, so that Ctrl-C and finalizers cannot leave it held.
        self._lock = threading.RLock()
        self._digests: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._scope = ""

    def scoped(self, scope: str) -> "ImageDigests":
        """Return the same digests as one of several parties sees them: only its own."""
        view = copy.copy(self)
        view._scope = scope
        return view

    def get(self, file_digest: str) -> str | None:
        """Return the digest of the image that was made from a file, or None."""
        key = self._scope, file_digest
        with self._lock:
            digest = self._digests.get(key)
            if digest is not None:
                self._digests.move_to_end(key)
            return digest

    def put(self, file_digest: str, digest: str) -> None:
        """Store the digest of an image."""
        with self._lock:
            self._digests[self._scope, file_digest] = digest
            while len(self._digests) > self._max_entries:
                self._digests.popitem(last=False)

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._digests.clear()
