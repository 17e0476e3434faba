"""Compares the weights of two checkpoints of one model, whatever their layouts."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from ..checkpoint.names import module_of
from ..checkpoint.reader import row_blocks
from ..checkpoint.weights import Checkpoint, as_float
from ..errors import RequestError
from ..progress import Progress, ProgressEvent, no_progress

MAX_BLOCK_VALUES = 2**22


@dataclass(frozen=True)
class TensorError:
    """How far one parameter is from its source."""

    path: str
    module: str
    layer: int | None
    """Number of the tower's or the decoder's layer."""
    squared_error: float
    """Sum of squares of the differences."""
    squared_values: float
    """Sum of squares of the source's values."""

    @property
    def relative(self) -> float:
        """The root of their quotient."""
        return relative_error([self])


def relative_error(errors: Sequence[TensorError]) -> float:
    """Return the relative error of several parameters taken together.

    Only those that differ at all count: norms are never rounded, and their values near 1 would
    make small of any error beside them.
    """
    differing = [error for error in errors if error.squared_error]
    if not differing:
        return 0.0
    values = math.fsum(error.squared_values for error in differing)
    difference = math.fsum(error.squared_error for error in differing)
    return math.sqrt(difference / values) if values else math.inf


def severity(error: float) -> float:
    """Return what errors are ordered by: NaN, of values that are no numbers, is the worst."""
    return math.inf if math.isnan(error) else error


def compare_weights(
    source: Checkpoint, converted: Checkpoint, progress: Progress | None = None
) -> list[TensorError]:
    """Return the error of each parameter. A few megabytes of both are in memory at a time.

    Zeros that pad the tower's MLP in one of the two are left out.

    Raises:
        RequestError: the two are not the same model.
    """
    progress = progress or no_progress
    shapes = _common_shapes(source, converted)
    sums: dict[str, list[tuple[float, float]]] = {path: [] for path in shapes}
    done, total = 0, sum(math.prod(shape) for shape in shapes.values())
    for path, shape in shapes.items():
        for start, stop in row_blocks(shape, MAX_BLOCK_VALUES):
            block = (stop - start, *shape[1:])
            expected, found = (_rows(one, path, start, block) for one in (source, converted))
            difference = as_float(mx.square(found - expected).sum())
            sums[path].append((difference, as_float(mx.square(expected).sum())))
            done += math.prod(block)
            # In bytes of the float32 that both are compared in.
            progress(ProgressEvent("comparing", 4 * done, 4 * total, "B"))
    return [
        TensorError(
            path=path,
            module=module_of(path) or path,
            layer=int(match.group(1)) if (match := re.search(r"layers\.(\d+)\.", path)) else None,
            squared_error=math.fsum(difference for difference, _ in blocks_of_path),
            squared_values=math.fsum(values for _, values in blocks_of_path),
        )
        for path, blocks_of_path in sums.items()
    ]


def _rows(source: Checkpoint, path: str, start: int, shape: tuple[int, ...]) -> mx.array:
    """Return rows in float32; of a bias that one of the two does without, zeros."""
    if path not in source.shapes:
        return mx.zeros(shape)
    rows = source.values(path, start, start + shape[0], mx.float32)
    return rows[tuple(slice(size) for size in shape)]


def _common_shapes(source: Checkpoint, converted: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter of either; where one is padded, the smaller one."""
    shapes = {}
    for path in dict.fromkeys((*source.shapes, *converted.shapes)):
        ours, theirs = (one.shapes.get(path) for one in (source, converted))
        if ours is None or theirs is None:
            if not path.endswith(".attention.qkv.bias"):
                raise RequestError(f"these are different models: only one of them has {path}")
            shapes[path] = ours or theirs or ()
            continue
        is_padded = path.startswith("vision_tower.") and ".mlp." in path
        if ours != theirs and not is_padded:
            raise RequestError(
                f"these are different models: {path} has shape {ours} in one, {theirs} in the other"
            )
        shapes[path] = tuple(map(min, ours, theirs))
    return shapes
