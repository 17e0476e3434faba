"""Batches of a plan: made on demand, or ahead of time in the background."""

import threading
from collections.abc import Iterator
from queue import SimpleQueue
from types import TracebackType

from ..errors import DataError, RequestError
from .collate import TrainingBatch, collate_right, expand
from .image_cache import ImageStore
from .prepared_examples import TrainingData
from .sampler import BatchPlan


class Batches:
    """Batches by step: `batches[step]` is the same whenever it is asked for."""

    def __init__(
        self, data: TrainingData, plan: BatchPlan, *, pad_to_multiple: int, cache_bytes: int
    ) -> None:
        """Make batches.

        Args:
            data: from `prepare_data`.
            plan: a `MixturePlan` or `FixedPlan` of this data.
            pad_to_multiple: what the length of a batch is made a multiple of, so that few shapes
                occur; 1: no more padding than needed.
            cache_bytes: bytes of pixels that are kept for the next time.

        Raises:
            RequestError: a number is out of range.
        """
        if pad_to_multiple < 1:
            raise RequestError(f"pad_to_multiple {pad_to_multiple} must be at least 1")
        if cache_bytes < 0:
            raise RequestError(f"cache_bytes {cache_bytes} must not be negative")
        self._data = data
        self._plan = plan
        self._pad_to_multiple = pad_to_multiple
        self._images = ImageStore(data.processor, data.limits, cache_bytes)

    @property
    def steps_per_epoch(self) -> int:
        """Batches that hold as many rows as there are."""
        return self._plan.steps_per_epoch

    @property
    def bytes_kept(self) -> int:
        """Bytes of pixels kept in memory."""
        return self._images.bytes_kept

    def __getitem__(self, step: int) -> TrainingBatch:
        """Return the batch of a step.

        Raises:
            DataError: an image has become unreadable since it was checked; names file and line.
            IndexError: there is no such step.
        """
        if step < 0:
            raise IndexError(f"step {step} is below 0")
        tokenizer = self._data.processor.tokenizer
        rows, labels, sources = [], [], []
        for number, place in self._plan.rows(step).tolist():
            source = self._data.sources[number]
            row = source.rows[place]
            try:
                images = [self._images.image(image) for image in row.images]
            except DataError as error:
                raise DataError(f"{source.path}:{row.line}: {error}") from error
            expanded, labels_of_row = expand(row, images, tokenizer.image_token_ids.image)
            rows.append(expanded)
            labels.append(labels_of_row)
            sources.append(source.name)
        return collate_right(
            rows,
            labels,
            sources,
            padding_token=tokenizer.bos_token_id,
            pad_to_multiple=self._pad_to_multiple,
        )

    def prefetch(self, start: int, stop: int | None, *, ahead: int) -> "Prefetch":
        """Return the batches from `start` up to `stop`, made in a thread of their own.

        Args:
            start: first step.
            stop: the step after the last; None: without end.
            ahead: batches that are made before they are asked for.
        """
        return Prefetch(self, start, stop, ahead)


class Prefetch:
    """An iterator over batches that are made in the background. Close it, or use `with`.

    Work begins with the first batch that is asked for. What goes wrong in the background is
    raised where the batch is asked for.
    """

    # Simple queues and a flag, and not a pool of the standard library: an interrupt at the wrong
    # moment leaves one of its locks taken, and the program never ends.

    def __init__(self, batches: Batches, start: int, stop: int | None, ahead: int) -> None:
        if ahead < 1:
            raise RequestError(f"ahead {ahead} must be at least 1")
        self._batches = batches
        self._next = start
        self._stop = stop
        self._outstanding = 0
        self._closed = False
        self._wanted: SimpleQueue[int | None] = SimpleQueue()
        self._made: SimpleQueue[TrainingBatch | BaseException] = SimpleQueue()
        for _ in range(ahead):
            self._ask()
        self._thread: threading.Thread | None = None

    def _ask(self) -> None:
        if self._stop is None or self._next < self._stop:
            self._wanted.put(self._next)
            self._next += 1
            self._outstanding += 1

    def _work(self) -> None:
        while (step := self._wanted.get()) is not None and not self._closed:
            try:
                self._made.put(self._batches[step])
            except BaseException as error:  # handed to whoever asks for the batch
                self._made.put(error)

    def __iter__(self) -> Iterator[TrainingBatch]:
        return self

    def __next__(self) -> TrainingBatch:
        """Return the next batch."""
        try:
            if not self._outstanding:
                raise StopIteration
            if self._thread is None:
                # Only now: what is made before `with` begins, nothing would close.
                self._thread = threading.Thread(
                    target=self._work, name="training-batches", daemon=True
                )
                self._thread.start()
            made = self._made.get()
            if isinstance(made, BaseException):
                raise made
        except BaseException:
            self.close()
            raise
        self._outstanding -= 1
        self._ask()
        return made

    def close(self) -> None:
        """Give up what has not been made yet, and wait for the thread to end."""
        self._closed = True
        self._outstanding = 0
        self._wanted.put(None)
        if self._thread is not None and self._thread.ident is not None:
            self._thread.join()

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
