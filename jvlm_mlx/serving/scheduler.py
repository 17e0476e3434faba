"""Continuous batching: requests wait in order, are prefilled one by one, and decode together.

Two host threads hand work to the device's worker, where their jobs take turns: one prefills the
next request, chunk by chunk, while the other steps the rows that decode already. So nobody's
answer waits for another one's prompt. Rows join and leave between steps; cancellation is a flag
that is looked at between steps, too.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from queue import Empty, SimpleQueue

from ..errors import JvlmError
from ..generation import device
from ..generation.answer import Cancelled, check_fit, make_row
from ..generation.caches import GenerationCaches
from ..generation.engine import Engine, Row, Token
from ..generation.memory import default_limit, kv_bytes, weight_bytes, wired_limit
from ..generation.options import GenerationOptions
from ..generation.prefill import Prefill
from ..generation.prompt import answer_length
from ..generation.response import GenerationResponse, ResponseBuilder
from ..model import Model
from ..processing.image_processor import PromptImage
from ..processing.inputs import PreparedPrompt
from ..processing.processor import Processor
from ..progress import no_progress
from .api_error import ApiError, busy, failed, invalid, too_large

logger = logging.getLogger(__name__)

RETRY_SECONDS = 2
"""After which a client that met a full queue should try again."""
STALL_SECONDS = 120
"""Without a step for so long, although rows wait for one, the server counts as unhealthy."""

Emit = Callable[[GenerationResponse | ApiError], None]
"""Takes every response of a job and, if it fails, one error. Called on threads of the scheduler."""


@dataclass(eq=False)
class Job:
    """One answer that somebody waits for."""

    prompt: PreparedPrompt[PromptImage]
    options: GenerationOptions
    emit: Emit
    cancelled: bool = False
    """May be set from any thread, at any time."""
    start: float = field(default_factory=time.perf_counter)
    max_tokens: int = 0
    reserved: int = 0
    """Bytes of KV cache that are set aside for it."""


@dataclass(eq=False)
class _Decoding:
    job: Job
    builder: ResponseBuilder


@dataclass
class Counters:
    """What happened since the start, for health and metrics."""

    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0


class Scheduler:
    """Answers jobs with one model.

    Args:
        model: from `load`.
        processor: from `load`.
        caches: of images and prefixes, shared by all requests.
        max_concurrent: most answers that decode together.
        max_queue: most that wait; one more is refused.
        max_memory: bytes for weights and KV caches; None for what the device recommends.
    """

    def __init__(
        self,
        model: Model,
        processor: Processor,
        *,
        caches: GenerationCaches,
        max_concurrent: int,
        max_queue: int,
        max_memory: int | None,
    ) -> None:
        device.take_over(model)
        self.model = model
        self._processor = processor
        self.caches = caches
        self.counters = Counters()
        self._max_concurrent = max_concurrent
        self._max_queue = max_queue
        self._explicit_limit = max_memory
        limit = max_memory or default_limit()
        self._room = None if limit is None else max(0, limit - weight_bytes(model))
        self._engine = Engine(model)
        self._decoding: dict[Row, _Decoding] = {}
        self._waiting: SimpleQueue[Job | None] = SimpleQueue()
        self._joining: SimpleQueue[_Join | None] = SimpleQueue()
        # Guards what both threads and the callers count. No finalizer or signal handler uses it.
        self._changed = threading.Condition()
        self._queued = self._active = self._reserved = 0
        self._closing = False
        self._last_step = time.monotonic()
        self._threads = [
            threading.Thread(target=self._prefill_loop, name="jvlm-prefill", daemon=True),
            threading.Thread(target=self._decode_loop, name="jvlm-decode", daemon=True),
        ]
        device.run(partial(wired_limit.hold, None))
        for thread in self._threads:
            thread.start()

    @property
    def queued(self) -> int:
        """Jobs that wait for their prefill."""
        return self._queued

    @property
    def active(self) -> int:
        """Jobs in prefill or decoding."""
        return self._active

    @property
    def is_alive(self) -> bool:
        """Whether both threads live, and rows that decode had a step not long ago."""
        stalled = bool(self._decoding) and time.monotonic() - self._last_step > STALL_SECONDS
        return all(thread.is_alive() for thread in self._threads) and not stalled

    def check(self, job: Job) -> None:
        """Refuse a job that could never run, and find out how large it is.

        Raises:
            ApiError: the prompt does not fit into the context or the memory.
        """
        try:
            check_fit(self.model, job.prompt)
            job.max_tokens = answer_length(self.model, len(job.prompt.token_ids), job.options)
        except JvlmError as error:
            raise invalid(str(error), "messages", "context_length_exceeded") from None
        tokens = len(job.prompt.token_ids) + job.max_tokens
        job.reserved = kv_bytes(self.model.config, tokens, self.model.dtype.size)
        if self._room is not None and job.reserved > self._room:
            raise too_large(
                f"the request needs {job.reserved / 1e9:.1f} GB of KV cache, and"
                f" {self._room / 1e9:.1f} GB are left beside the weights: lower max_tokens, or"
                " send fewer images"
            )

    def submit(self, jobs: list[Job]) -> None:
        """Let checked jobs wait for their turn, all or none of them.

        Raises:
            ApiError: too many wait already, or the server is stopping.
        """
        with self._changed:
            if self._closing or self._queued + len(jobs) > self._max_queue:
                self.counters.refused += 1
                raise busy(RETRY_SECONDS)
            self._queued += len(jobs)
        for job in jobs:
            self._waiting.put(job)

    def cancel(self, job: Job) -> None:
        """Drop a job, wherever it is; nothing more is emitted for it."""
        job.cancelled = True
        with self._changed:
            self._changed.notify_all()

    def close(self, seconds: float) -> None:
        """Take no more jobs, let those that run finish for a while, and end the threads."""
        with self._changed:
            self._closing = True
            self._changed.wait_for(lambda: not self._queued and not self._active, seconds)
        self._waiting.put(None)
        self._joining.put(None)
        for thread in self._threads:
            thread.join(seconds)
        device.run(partial(wired_limit.release, None))

    # --- prefill

    def _prefill_loop(self) -> None:
        while (job := self._waiting.get()) is not None:
            with self._changed:
                self._changed.wait_for(partial(self._has_room, job))
                self._queued -= 1
                self._active += 1
                self._reserved += job.reserved
                others = self._reserved - job.reserved
            if job.cancelled:
                self._leave(job, "cancelled")
                continue
            try:
                self._joining.put(self._prefill(job, others))
            except Cancelled:
                self._leave(job, "cancelled")
            except JvlmError as error:
                self._fail(job, invalid(str(error)))
            except Exception:
                logger.exception("a prefill failed")
                self._fail(job, failed())

    def _has_room(self, job: Job) -> bool:
        if job.cancelled or self._active == 0:
            return True
        fits = self._room is None or self._reserved + job.reserved <= self._room
        return self._active < self._max_concurrent and fits

    def _prefill(self, job: Job, others: int) -> "_Join":
        def check() -> None:
            if job.cancelled:
                raise Cancelled

        options = job.options
        if self._explicit_limit is not None:
            # What the others may come to need is not this one's.
            options = replace(options, max_memory=max(1, self._explicit_limit - others))
        builder = ResponseBuilder(self._processor, job.prompt, options, job.max_tokens, job.start)
        prefill = Prefill(self.model, job.prompt, options, self.caches, builder, no_progress, check)
        logits = prefill.run(job.prompt)

        def join() -> Row:
            prefill.keep()
            row = make_row(self.model, job.prompt, options, job.max_tokens)
            self._engine.add([row], prefill.cache, logits)
            return row

        self.counters.prompt_tokens += len(job.prompt.token_ids)
        self.counters.cached_tokens += builder.cached_tokens
        return _Join(_Decoding(job, builder), join)

    # --- decoding

    def _decode_loop(self) -> None:
        while self._let_join():
            self._last_step = time.monotonic()
            for row, decoding in self._decoding.items():
                row.cancelled = row.cancelled or decoding.job.cancelled
            try:
                tokens = device.run(self._engine.step) if self._decoding else []
            except Exception:
                logger.exception("a decode step failed")
                self._fail_all()
                continue
            for token in tokens:
                self._take(token)
            for row in [row for row in self._decoding if row.cancelled]:
                self._leave(self._decoding.pop(row).job, "cancelled")

    def _let_join(self) -> bool:
        """Let all that are ready join; wait for one if nothing decodes. False at the end."""
        while True:
            try:
                joining = self._joining.get(block=not self._decoding)
            except Empty:
                return True
            if joining is None:
                return False
            try:
                self._decoding[device.run(joining.join)] = joining.decoding
            except Exception:
                logger.exception("a request could not join the batch")
                self._fail(joining.decoding.job, failed())

    def _take(self, token: Token) -> None:
        decoding = self._decoding[token.row]
        job = decoding.job
        if token.row.error is not None:
            logger.error("a row failed", exc_info=token.row.error)
            token.row.cancelled = True
            del self._decoding[token.row]
            self._fail(job, failed())
            return
        response = decoding.builder.add(token.token, token.observed)
        self.counters.generated_tokens += 1
        if response.finish_reason is not None:
            token.row.cancelled = True  # it leaves before the next step
            del self._decoding[token.row]
            self._leave(job, "finished")
        self._emit(job, response)

    # --- the end of jobs

    def _fail_all(self) -> None:
        """End every row: a step may have stopped between two layers."""
        decoding, self._decoding = self._decoding, {}
        device.run(lambda: self._engine.remove(self._engine.rows))
        for one in decoding.values():
            self._fail(one.job, failed())

    def _fail(self, job: Job, error: ApiError) -> None:
        self._leave(job, "failed")
        self._emit(job, error)

    def _leave(self, job: Job, how: str) -> None:
        with self._changed:
            self._active -= 1
            self._reserved -= job.reserved
            setattr(self.counters, how, getattr(self.counters, how) + 1)
            self._changed.notify_all()

    def _emit(self, job: Job, response: GenerationResponse | ApiError) -> None:
        try:
            job.emit(response)
        except RuntimeError:  # the event loop has ended
            job.cancelled = True


@dataclass(frozen=True)
class _Join:
    decoding: _Decoding
    join: Callable[[], Row]
    """Lets it join the batch; on the device's worker."""
