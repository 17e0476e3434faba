"""Several processes that train one model: each has its share of every step's batches.

`mlx.launch` starts them, on one machine or on several, and MLX connects them. Without it there
is one process and nothing here does anything.
"""

import mlx.core as mx

from ..checkpoint.weights import as_float

Arrays = dict[str, mx.array]


class Processes:
    """This process among those of the run."""

    def __init__(self) -> None:
        self._group = mx.distributed.init()

    @property
    def count(self) -> int:
        """How many processes there are."""
        return int(self._group.size())

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes files and shows progress."""
        return self.rank == 0

    @property
    def rank(self) -> int:
        """Number of this process, from 0: of what all do together it does every `count`-th."""
        return int(self._group.rank())

    def sum(self, value: float) -> float:
        """Return the sum of a number over all processes."""
        if self.count == 1:
            return value
        return as_float(mx.distributed.all_sum(mx.array(float(value)), group=self._group))

    def add(self, loss: mx.array, gradients: Arrays) -> tuple[mx.array, Arrays]:
        """Return the sums of loss and gradients over all processes, in one message."""
        if self.count == 1:
            return loss, gradients
        arrays = [loss, *gradients.values()]
        joined = mx.concatenate([array.astype(mx.float32).reshape(-1) for array in arrays])
        joined = mx.distributed.all_sum(joined, group=self._group)
        pieces = []
        start = 0
        for array in arrays:
            piece = joined[start : start + array.size]
            pieces.append(piece.reshape(array.shape).astype(array.dtype))
            start += array.size
        return pieces[0], dict(zip(gradients, pieces[1:], strict=True))
