"""Jobs, and which of them may wait and start: places in the queue, places in the batch, and memory.

A request waits in the order of arrival until there is a place and memory for its KV cache beside
what is reserved for the others. Callers, the prefill and the decoding count here, each from its
own thread. No finalizer or signal handler does.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from ..generation.options import GenerationOptions
from ..generation.response import GenerationResponse
from ..processing.image_processor import PromptImage
from ..processing.inputs import PreparedPrompt
from .api_error import ApiError, busy, stopping
from .metrics import Counters

RETRY_SECONDS = 2
"""After which a client that met a full queue should try again."""

Emit = Callable[[GenerationResponse | ApiError], None]
"""Takes every response of a job and, if it fails, one error. Called on threads of the scheduler."""


@dataclass(eq=False)
class Job:
    """One answer that somebody waits for."""

    prompt: PreparedPrompt[PromptImage]
    options: GenerationOptions
    emit: Emit
    owner: str = ""
    """Whose it is; nothing that is cached for one owner is used for another."""
    cancelled: bool = False
    """May be set from any thread, at any time."""
    start: float = field(default_factory=time.perf_counter)
    max_tokens: int = 0
    reserved: int = 0
    """Bytes of KV cache that are set aside for it."""
    is_queued: bool = False
    """Whether it takes a place among those that wait."""


class Admission:
    """Counts the jobs of one scheduler.

    Args:
        counters: of the server.
        max_concurrent: most jobs that are under way together.
        max_queue: most that wait; one more is refused.
        room: bytes for KV caches; None for no limit.
    """

    def __init__(
        self, counters: Counters, *, max_concurrent: int, max_queue: int, room: int | None
    ) -> None:
        self._counters = counters
        self._max_concurrent = max_concurrent
        self._max_queue = max_queue
        self.room = room
        self._changed = threading.Condition()
        self.queued = 0
        """Jobs that wait for their prefill."""
        self.active = 0
        """Jobs in prefill or decoding."""
        self.reserved = 0
        """Bytes of KV cache of the active ones."""
        self._closing = False
        self.ended: ApiError | None = None
        """What everything that is left ends with; None as long as the server runs."""

    def enter(self, jobs: Sequence[Job]) -> None:
        """Give jobs places in the queue, all or none of them.

        Raises:
            ApiError: too many wait already, or the server is stopping.
        """
        with self._changed:
            if self._closing or self.queued + len(jobs) > self._max_queue:
                self._counters.refused += 1
                raise stopping() if self._closing else busy(RETRY_SECONDS)
            self.queued += len(jobs)
            for job in jobs:
                job.is_queued = True

    def cancel(self, job: Job) -> None:
        """Mark a job as cancelled. If it waits, its place is free at once."""
        job.cancelled = True
        with self._changed:
            if job.is_queued:
                job.is_queued = False
                self.queued -= 1
                self._counters.cancelled += 1
            self._changed.notify_all()

    def wait_to_start(self, job: Job) -> bool:
        """Wait until a job has a place and memory; False if it was cancelled meanwhile."""
        with self._changed:
            self._changed.wait_for(partial(self._may_start, job))
            if not job.is_queued:
                return False
            job.is_queued = False
            self.queued -= 1
            self.active += 1
            self.reserved += job.reserved
            return True

    def wait_for_fewer(self, job: Job, others: int) -> None:
        """Wait until others than this job have less than `others` bytes reserved, or it ends."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.others(job) < others or job.cancelled or self.ended is not None
            )

    def others(self, job: Job) -> int:
        """Return the bytes that are reserved for other jobs than this active one."""
        return self.reserved - job.reserved

    def leave(self, job: Job, how: str) -> None:
        """Free what an active job had, and count how it ended."""
        with self._changed:
            self.active -= 1
            self.reserved -= job.reserved
            setattr(self._counters, how, getattr(self._counters, how) + 1)
            self._changed.notify_all()

    def close(self, seconds: float) -> None:
        """Let nobody in any more, and wait for those who are there; then let the rest end."""
        with self._changed:
            self._closing = True
            self._changed.wait_for(self._is_idle, seconds)
            self.ended = stopping()
            self._changed.notify_all()
            self._changed.wait_for(self._is_idle, seconds)

    def _may_start(self, job: Job) -> bool:
        if not job.is_queued or self.ended is not None or self.active == 0:
            return True
        fits = self.room is None or self.reserved + job.reserved <= self.room
        return self.active < self._max_concurrent and fits

    def _is_idle(self) -> bool:
        return not self.queued and not self.active
