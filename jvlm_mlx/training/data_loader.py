"""Batches by number: examples padded to one another, made on demand or ahead of time."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, RequestError
from ..processing.image_processor import ProcessedImage
from ..processing.inputs import PreparedPrompt, collate, place_images
from ..units import total_memory
from .dataset import TrainingData
from .encoding import IGNORED
from .example_images import ImageStore
from .sampler import Indices, Sampler, ordered_batches
from .training_config import TrainingConfig

AHEAD = 2
"""Batches that are made in the background while the model learns from one."""


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """One batch, as arrays of the host.

    Padded on the right, so that causal attention needs no mask.
    B examples, L tokens, T tiles of the example with most, P patches, V values of a patch, W
    windows.
    """

    input_ids: NDArray[np.int32]
    """(B, L) tokens; shorter examples are followed by the end of text, which no label follows."""
    labels: NDArray[np.int32]
    """(B, L) the token to be predicted in this place, from the ones before it; -1: nothing.

    It is the token of `input_ids`, but for one case: where the chat template writes no stop token
    behind an answer and the conversation continues, the label is the stop token.
    """
    loss_mask: NDArray[np.bool_]
    """(B, L) where a label is to be learned."""
    pixel_values: NDArray[np.float32] | None
    """(B, T, P, V) as in `ModelInputs`; None if no example has an image."""
    image_masks: NDArray[np.int8] | None
    """(B, T, P) as in `ModelInputs`."""
    image_input_idx: NDArray[np.int32] | None
    """(B, T, W) as in `ModelInputs`."""
    num_tokens: int
    """Tokens without padding."""
    num_targets: int
    """Tokens to be learned."""


class _Batches(Protocol):
    """The examples of each batch."""

    def __getitem__(self, number: int, /) -> Indices: ...


class DataLoader:
    """Batches by number: `loader[number]` is the same whenever it is asked for."""

    def __init__(
        self,
        data: TrainingData,
        config: TrainingConfig,
        batches: _Batches,
        num_batches: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        """Make batches.

        Args:
            data: from `read_examples`.
            config: of the run.
            batches: examples of each batch, all processes together.
            num_batches: of an epoch, or all there are.
            rank: number of this process.
            ranks: processes that share every batch.
        """
        self.data = data
        self.num_batches = num_batches
        self._config = config
        self._batches = batches
        self._rank, self._ranks = rank, ranks
        self._images = ImageStore(data.processor, data.image_options, config.image_cache)

    @property
    def cached_bytes(self) -> int:
        """Bytes of pixels kept in memory."""
        return self._images.cached_bytes

    def num_images(self, number: int) -> int:
        """Return the images of a batch, all processes together."""
        return sum(len(self.data.examples[index].images) for index in self._batches[number])

    def __getitem__(self, number: int) -> TrainingBatch:
        """Return a batch.

        Raises:
            DataError: an image has become unreadable since it was checked; names file and line.
            RequestError: the batch does not fit into memory.
            IndexError: there is no such batch.
        """
        # Examples of a batch are of like size, so every process has the same amount of work.
        indices = self._batches[number][self._rank :: self._ranks]
        self._check_memory(indices)
        tokenizer = self.data.processor.tokenizer
        prompts, labels = [], []
        for index in indices:
            prompt, labels_of_example = self._prompt(int(index))
            prompts.append(prompt)
            labels.append(labels_of_example)
        inputs = collate(
            prompts,
            padding_side="right",
            padding_token=tokenizer.bos_token_id,
            pad_to_multiple=self._config.pad_to_multiple,
        )
        all_labels = np.full(inputs.input_ids.shape, IGNORED, np.int32)  # (B, L)
        for place, labels_of_example in enumerate(labels):
            all_labels[place, : len(labels_of_example)] = labels_of_example
        loss_mask = all_labels != IGNORED
        return TrainingBatch(
            input_ids=inputs.input_ids,
            labels=all_labels,
            loss_mask=loss_mask,
            pixel_values=inputs.pixel_values,
            image_masks=inputs.image_masks,
            image_input_idx=inputs.image_input_idx,
            num_tokens=sum(map(len, labels)),
            num_targets=int(np.count_nonzero(loss_mask)),
        )

    def _check_memory(self, indices: Indices) -> None:
        """Refuse what would be killed by the system, before anything is allocated."""
        config = self.data.processor.image_processor.config
        tiles, length = self.data.sizes[indices].max(axis=0).tolist()
        rows, columns = config.patch_grid
        values = tiles * rows * columns * config.patch_values + length
        needed = 4 * len(indices) * values
        memory = total_memory()
        if needed > memory:
            raise RequestError(
                f"a batch of {len(indices)} examples takes {needed / 1e9:.1f} GB, and this machine"
                f" has {memory / 1e9:.1f} GB; lower batch_size"
            )

    def _prompt(self, index: int) -> tuple[PreparedPrompt[ProcessedImage], NDArray[np.int32]]:
        """Return an example with its images put in, and its labels (L,)."""
        example = self.data.examples[index]
        try:
            images = [self._images.image(image.source, image.layout) for image in example.images]
        except DataError as error:
            path = self.data.sources[example.source].path
            raise DataError(f"{path}:{example.line}: {error}") from error
        placeholder = self.data.processor.tokenizer.image_token_ids.image
        repeats = np.ones(len(example.token_ids), np.int64)
        repeats[example.token_ids == placeholder] = [len(image.image_tokens) for image in images]
        prompt = place_images(example.token_ids, images, placeholder)
        return prompt, np.repeat(example.labels, repeats)

    def prefetch(self, start: int, stop: int | None, *, ahead: int = AHEAD) -> "Prefetch":
        """Return the batches from `start` up to `stop` (None: without end).

        They are made in a thread of their own, `ahead` of them before they are asked for.
        """
        return Prefetch(self, start, stop, ahead)


def training_loader(
    data: TrainingData, config: TrainingConfig, rank: int = 0, ranks: int = 1
) -> DataLoader:
    """Return batches without end, drawn from all sources, for one of the processes of a run.

    Raises:
        RequestError: the processes cannot share a batch.
        DataError: the fraction of examples without images cannot be met.
    """
    if config.batch_size % ranks:
        raise RequestError(
            f"{ranks} processes cannot share batches of {config.batch_size} examples; set"
            f" batch_size to a multiple of {ranks}"
        )
    sampler = Sampler(data, config)
    return DataLoader(data, config, sampler, sampler.batches_per_epoch, rank, ranks)


def validation_loader(data: TrainingData, config: TrainingConfig) -> DataLoader:
    """Return batches that hold every example once."""
    batches: Sequence[Indices] = ordered_batches(data, config)
    return DataLoader(data, config, batches, len(batches))


class Prefetch:
    """An iterator over batches that are made in the background. Close it, or use `with`.

    Work begins with the first batch that is asked for. What goes wrong in the background is
    raised where the batch is asked for.
    """

    # Simple queues and a flag, and not a pool of the standard library: an interrupt at the wrong
    # moment leaves one of its locks taken, and the program never ends.

    def __init__(self, loader: DataLoader, start: int, stop: int | None, ahead: int) -> None:
        if ahead < 1:
            raise RequestError(f"ahead {ahead} must be at least 1")
        self._loader = loader
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
        while (number := self._wanted.get()) is not None and not self._closed:
            try:
                self._made.put(self._loader[number])
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
