"""The one thread on which all work on the device happens.

MLX's streams and unevaluated arrays belong to the thread that made them, so answers that are
asked for from many threads, by asyncio's helpers for instance, cannot each use their own. Here
callers hand functions to a worker thread and wait for the results; functions run in the order
in which they came, so callers take turns. The worker uses its own default streams and its own
random state: those of the callers, and the default device, are never touched.

Waiting uses nothing but `queue.SimpleQueue`, whose operations are single C calls: Ctrl-C cannot
leave a lock held. A finalizer, which may run in any thread and inside any other code, only posts
its work and never waits.
"""

import atexit
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, TypeVar

import mlx.core as mx

from ..errors import RequestError, explained
from ..model import Model

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(eq=False)
class _Job:
    """A function for the worker, and where its result goes."""

    function: Callable[[], Any]
    results: "SimpleQueue[tuple[Any, BaseException | None]] | None"
    """Takes one value or error; None if nobody waits."""
    abandoned: bool = False
    """Whether the caller left, by Ctrl-C perhaps, before the result came."""


@dataclass(eq=False)
class _Worker:
    """A thread that runs jobs, one after the other."""

    jobs: "SimpleQueue[_Job | None]" = field(default_factory=SimpleQueue)
    claims: dict[str, threading.Thread] = field(default_factory=dict)
    """The thread that runs the jobs, once there is one."""
    process: int = field(default_factory=os.getpid)
    """In which the thread runs."""
    closed: bool = False

    @property
    def thread(self) -> threading.Thread | None:
        return self.claims.get("thread")

    def start(self) -> None:
        """Start the thread, if there is none. Of several that start at once, one stays."""
        while "thread" not in self.claims:
            self.process = os.getpid()  # perhaps not the one that imported this module
            started: SimpleQueue[None] = SimpleQueue()
            threading.Thread(
                target=self._work, args=(started,), name="jvlm-device", daemon=True
            ).start()
            started.get()

    def _work(self, started: "SimpleQueue[None]") -> None:
        # A single C call decides which thread it is.
        chosen = self.claims.setdefault("thread", threading.current_thread())
        started.put(None)
        if chosen is not threading.current_thread():
            return
        while (job := self.jobs.get()) is not None:
            _run_job(job)
            # Nothing of the last job, and so none of its arrays, is kept while waiting.
            del job
        mx.clear_streams()

    def stop(self) -> None:
        """Let the thread end, and wait for it. The interpreter would end under its feet."""
        self.closed = True
        if self.process == os.getpid() and self.thread is not None:
            self.jobs.put(None)
            self.thread.join()


def _run_job(job: _Job) -> None:
    if job.abandoned:
        return
    value, error = None, None
    try:
        value = job.function()
    except BaseException as raised:
        error = explained(raised)
    if job.results is not None:
        job.results.put((value, error))
    elif error is not None:
        logger.error("work on the device that nobody waits for failed", exc_info=error)


_worker = _Worker()
atexit.register(lambda: _worker.stop())


def run(function: Callable[[], T]) -> T:
    """Run a function on the worker, after all that was handed over before; return its result.

    Called on the worker itself, it runs at once.

    Raises:
        RequestError: this process was forked after the worker started, or memory ran out.
    """
    _check_fork(_worker.process if _worker.thread is not None else os.getpid())
    if on_worker():
        return function()
    if _worker.closed:
        if threading.current_thread() is not threading.main_thread():
            raise SystemExit  # a daemon thread that is still running ends without a word
        raise RequestError("the interpreter is shutting down; nothing can be computed any more")
    _worker.start()
    results: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
    job = _Job(function, results)
    _worker.jobs.put(job)
    try:
        value, error = results.get()
    except BaseException:
        job.abandoned = True
        raise
    if error is None:
        return value
    try:
        raise error
    finally:
        del error  # its traceback holds this frame


def post(function: Callable[[], Any]) -> None:
    """Hand over a function without waiting for it; may be called by a finalizer.

    After a fork, or without a worker, there is nothing to be cleaned up, and it is dropped.
    """
    if _worker.process == os.getpid() and _worker.thread is not None:
        _worker.jobs.put(_Job(function, None))


def synchronize() -> None:
    """Wait until everything that was handed over is done."""
    if _worker.thread is not None:
        run(lambda: None)


def on_worker() -> bool:
    """Return whether this is the worker."""
    return threading.current_thread() is _worker.thread


def take_over(model: Model) -> None:
    """Make sure that the worker can use a model of this thread.

    Weights that were replaced and never evaluated could be computed in this thread only.

    Raises:
        RequestError: the model was loaded before this process was forked; MLX would hang for good.
    """
    _check_fork(model.process_id)
    if not on_worker():
        model.prepare()


def _check_fork(process: int) -> None:
    if process != os.getpid():
        raise RequestError(
            "this process was forked from one that uses the device already, which MLX does not"
            " survive: start processes with the spawn method, and load the model in each"
        )
