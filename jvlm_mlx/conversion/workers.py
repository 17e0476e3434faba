"""A few threads that work through a list of jobs: one reads while another computes or writes."""

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import mlx.core as mx

Job = TypeVar("Job")
Result = TypeVar("Result")

WORKERS = min(os.cpu_count() or 1, 4)
"""More would only add memory: a disk or a GPU is busy by then."""


def device_lock() -> AbstractContextManager[Any]:
    """Return what to hold while computing: GPUs take turns, processor cores need not."""
    return threading.Lock() if mx.default_device().type == mx.DeviceType.gpu else nullcontext()


def work_through(
    jobs: Iterable[Job], work: Callable[[Job], Result], workers: int = WORKERS
) -> Iterator[Result]:
    """Yield the result of each job, in whatever order they come.

    The first error ends everything and is raised here. Closing the iterator, or an exception
    like Ctrl-C in the caller, waits for the jobs under way and starts no more.

    Args:
        jobs: taken one by one, so they may be made on the way.
        work: called in one of the threads, each of which has a stream of its own.
        workers: how many threads.
    """
    remaining = iter(jobs)
    turn = threading.Lock()
    stop = threading.Event()
    # Short, so that threads do not run ahead of a caller that does something with the results.
    results: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(maxsize=2 * workers)
    finished = object()
    device = mx.default_device()

    def take() -> Any:
        with turn:
            return next(remaining, finished)

    def loop() -> None:
        error: BaseException | None = None
        try:
            # Streams belong to threads: arrays of one cannot be evaluated in another.
            with mx.stream(mx.new_stream(device)):
                while not stop.is_set() and (job := take()) is not finished:
                    results.put((work(job), None))
        except BaseException as caught:
            error = caught
            stop.set()
        finally:
            mx.clear_streams()
            results.put((finished, error))

    threads = [threading.Thread(target=loop, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    running = workers
    failure: BaseException | None = None
    try:
        while running:
            result, error = results.get()
            if result is finished:
                running -= 1
                failure = failure or error
            elif not stop.is_set():
                yield result
    finally:
        stop.set()
        while running:
            running -= results.get()[0] is finished
        for thread in threads:
            thread.join()
    if failure:
        raise failure
