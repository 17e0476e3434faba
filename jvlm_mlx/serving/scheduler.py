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
from dataclasses import dataclass, replace
from functools import partial
from queue import Empty, SimpleQueue

import mlx.core as mx

from ..errors import JvlmError, RequestError
from ..generation import device
from ..generation.answer import Cancelled, check_fit, make_row
from ..generation.caches import GenerationCaches
from ..generation.engine import Engine
from ..generation.memory import WiredBytes, default_limit, kv_bytes, weight_bytes, wired_limit
from ..generation.prefill import Prefill
from ..generation.prompt import answer_length
from ..generation.response import GenerationResponse, ResponseBuilder
from ..generation.row import Row, Token
from ..model import Model
from ..processing.processor import Processor
from ..progress import no_progress
from .admission import RETRY_SECONDS, Admission, Job
from .api_error import ApiError, failed, invalid, out_of_memory, too_large
from .metrics import Counters

logger = logging.getLogger(__name__)

STALL_SECONDS = 120
"""Without a step for so long, although requests wait for one, the server counts as unhealthy."""


@dataclass(eq=False)
class _Decoding:
    job: Job
    builder: ResponseBuilder


class Scheduler:
    """Answers jobs with one model.

    Args:
        model: from `load`.
        processor: from `load`.
        caches: of images and prefixes, shared by all requests.
        max_concurrent: most answers that decode together.
        max_queue: most that wait; one more is refused.
        max_memory: bytes for weights and KV caches; None for what the device recommends.
        wired: what the system keeps in place for the GPU until `close`; see `WiredLimit`.
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
        wired: WiredBytes = None,
    ) -> None:
        device.take_over(model)
        self.model = model
        self._processor = processor
        self.caches = caches
        self.counters = Counters()
        self._explicit_limit = max_memory
        self._wired: WiredBytes = wired
        limit = max_memory or default_limit()
        self._admission = Admission(
            self.counters,
            max_concurrent=max_concurrent,
            max_queue=max_queue,
            room=None if limit is None else max(0, limit - weight_bytes(model)),
        )
        self._engine = Engine(model)
        self._decoding: dict[Row, _Decoding] = {}
        self._waiting: SimpleQueue[Job | None] = SimpleQueue()
        self._joining: SimpleQueue[_Join | None] = SimpleQueue()
        self._last_progress = time.monotonic()
        self.steps = 0
        """Of prefill and decoding, so far; who waits can see that others get on."""
        self._threads = [
            threading.Thread(target=self._prefill_loop, name="jvlm-prefill", daemon=True),
            threading.Thread(target=self._decode_loop, name="jvlm-decode", daemon=True),
        ]
        device.run(partial(wired_limit.hold, wired))
        for thread in self._threads:
            thread.start()

    @property
    def queued(self) -> int:
        """Jobs that wait for their prefill."""
        return self._admission.queued

    @property
    def active(self) -> int:
        """Jobs in prefill or decoding."""
        return self._admission.active

    @property
    def is_alive(self) -> bool:
        """Whether both threads live, and what is under way had a step not long ago."""
        stalled = bool(self.active) and time.monotonic() - self._last_progress > STALL_SECONDS
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
        room = self._admission.room
        if room is not None and job.reserved > room:
            raise too_large(
                f"the request needs {job.reserved / 1e9:.1f} GB of KV cache, and"
                f" {room / 1e9:.1f} GB are left beside the weights: lower max_tokens, or"
                " send fewer images"
            )

    def submit(self, jobs: list[Job]) -> None:
        """Let checked jobs wait for their turn, all or none of them.

        Raises:
            ApiError: too many wait already, or the server is stopping.
        """
        self._admission.enter(jobs)
        for job in jobs:
            self._waiting.put(job)

    def cancel(self, job: Job) -> None:
        """Drop a job, wherever it is; nothing more is emitted for it. Its place is free at once."""
        self._admission.cancel(job)

    def close(self, seconds: float) -> None:
        """Take no more jobs, let those there are finish for a while, end the rest and the threads.

        What is left ends with an error that says so, so that streams end properly, too.
        """
        self._admission.close(seconds)
        self._waiting.put(None)
        self._joining.put(None)
        for thread in self._threads:
            thread.join(seconds)
        device.run(partial(wired_limit.release, self._wired))

    # --- prefill

    def _prefill_loop(self) -> None:
        while (job := self._waiting.get()) is not None:
            if not self._admission.wait_to_start(job):
                continue  # it was cancelled, and has left
            self._last_progress = time.monotonic()
            try:
                self._joining.put(self._prefill_with_room(job))
            except Cancelled:
                self._admission.leave(job, "cancelled")
            except ApiError as error:
                self._fail(job, error)
            except JvlmError as error:
                self._fail(job, invalid(str(error)))
            except Exception:
                logger.exception("a prefill failed")
                self._fail(job, failed())

    def _prefill_with_room(self, job: Job) -> "_Join":
        """Prefill; where memory lacks that others hold, once more as they leave."""
        while True:
            others = self._admission.others(job)
            try:
                return self._prefill(job, others)
            except RequestError:
                if others <= 0 or self._explicit_limit is None:
                    raise
            self._admission.wait_for_fewer(job, others)
            self._check(job)

    def _check(self, job: Job) -> None:
        """Leave the work on a job that was cancelled, or that the server does not finish."""
        self._note_step()
        if self._admission.ended is not None:
            raise self._admission.ended
        if job.cancelled:
            raise Cancelled

    def _prefill(self, job: Job, others: int) -> "_Join":
        options = job.options
        if self._explicit_limit is not None:
            # What the others may come to need is not this one's.
            options = replace(options, max_memory=max(1, self._explicit_limit - others))
        builder = ResponseBuilder(self._processor, job.prompt, options, job.max_tokens, job.start)
        caches, check = self.caches.scoped(job.owner), partial(self._check, job)
        prefill = Prefill(self.model, job.prompt, options, caches, builder, no_progress, check)
        logits = prefill.run(job.prompt)

        def join() -> Row:
            prefill.keep()
            row = make_row(self.model, job.prompt, options, job.max_tokens)
            self._engine.add([row], prefill.cache, logits)
            return row

        self.counters.prompt_tokens += len(job.prompt.token_ids)
        self.counters.cached_tokens += builder.cached_tokens
        return _Join(_Decoding(job, builder), join)

    def _note_step(self) -> None:
        self.steps += 1
        self._last_progress = time.monotonic()

    # --- decoding

    def _decode_loop(self) -> None:
        while self._let_join():
            self._note_step()
            if self._admission.ended is not None:
                self._fail_all(self._admission.ended)
                continue
            for row, decoding in self._decoding.items():
                row.cancelled = row.cancelled or decoding.job.cancelled
            self._keep_within_memory()
            try:
                tokens = device.run(self._engine.step) if self._decoding else []
            except Exception:
                logger.exception("a decode step failed")
                self._fail_all(failed())
                continue
            for token in tokens:
                self._take(token)
            for row in [row for row in self._decoding if row.cancelled]:
                self._admission.leave(self._decoding.pop(row).job, "cancelled")

    def _keep_within_memory(self) -> None:
        """Where more memory is in use than allowed, shrink caches, then end the newest answer.

        What was reserved at admission is exact, so this is for what nobody foresaw.
        """
        limit = self._explicit_limit
        if limit is None or mx.get_active_memory() <= limit:
            return
        self.caches.shrink(max(0, self.caches.nbytes - (mx.get_active_memory() - limit)))
        rows = [row for row in self._decoding if not row.cancelled]
        if len(rows) > 1 and mx.get_active_memory() > limit:
            rows[-1].cancelled = True
            self._fail(self._decoding.pop(rows[-1]).job, out_of_memory(RETRY_SECONDS))

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
            self._admission.leave(job, "finished")
        self._emit(job, response)

    # --- the end of jobs

    def _fail_all(self, error: ApiError) -> None:
        """End every row, as after a step that may have stopped between two layers."""
        decoding, self._decoding = self._decoding, {}
        device.run(lambda: self._engine.remove(self._engine.rows))
        for one in decoding.values():
            self._fail(one.job, error)

    def _fail(self, job: Job, error: ApiError) -> None:
        self._admission.leave(job, "failed")
        self._emit(job, error)

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
