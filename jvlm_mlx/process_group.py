"""Several processes that split the work of one run, on one machine or on several.

`mlx.launch` starts them, and MLX connects them. Without it there is one process.
"""

import mlx.core as mx
import numpy as np

from .errors import RequestError
from .files import reason


class ProcessGroup:
    """This process among those of the run."""

    def __init__(self) -> None:
        self._group = mx.distributed.init()

    @property
    def count(self) -> int:
        """How many processes there are."""
        return int(self._group.size())

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes files for all and shows progress."""
        return self.rank == 0

    @property
    def rank(self) -> int:
        """Number of this process, from 0: of what all do together it does every `count`-th."""
        return int(self._group.rank())

    def sum(self, value: float) -> float:
        """Return the sum of a number over all processes."""
        if self.count == 1:
            return value
        total = mx.distributed.all_sum(mx.array(float(value)), group=self._group)
        return float(np.array(total))

    def gather(self, text: str) -> list[str]:
        """Return the text of every process, by rank, when all have given theirs.

        Raises:
            RequestError: a process has ended before.
        """
        if self.count == 1:
            return [text]
        data = np.frombuffer(text.encode(), np.uint8)
        try:
            lengths = mx.distributed.all_gather(mx.array([len(data)]), group=self._group)
            sizes = [int(size) for size in np.array(lengths)]
            # All have to send the same number of bytes.
            padded = np.zeros(max(1, *sizes), np.uint8)
            padded[: len(data)] = data
            gathered = np.array(mx.distributed.all_gather(mx.array(padded), group=self._group))
        except RuntimeError as error:
            raise RequestError(
                f"another of the {self.count} processes has ended ({reason(error)}); the same"
                " command resumes from here"
            ) from error
        rows = gathered.reshape(self.count, -1)  # (count x bytes,) -> (count, bytes)
        return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]
