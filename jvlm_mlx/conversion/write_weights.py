"""Writes all weights of a conversion, a few megabytes at a time."""

import math
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx

from ..checkpoint.names import part_of
from ..checkpoint.row_reader import as_bytes, row_blocks
from ..checkpoint.writer import ShardWriter, split_into_shards
from ..progress import Progress, ProgressEvent
from .plan import ParameterPlan, Plan
from .source import Source
from .transform import transform_rows
from .workers import device_lock, work_through

BLOCK_VALUES = 2**20
"""Numbers that one thread works on at a time. To quantize to 4-bit floating point on the CPU,
mlx holds more than 64 bytes for each, so this bounds more than what is read and written."""


def write_weights(
    source: Source,
    plan: Plan,
    folder: Path,
    max_shard_bytes: int,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Write all tensors into a folder, and return what rounding cost.

    Args:
        source: the open checkpoint.
        plan: of the conversion.
        folder: an empty one.
        max_shard_bytes: largest file.
        progress: told of the stage `converting`, in bytes.

    Returns:
        The relative rounding error of each part in which anything was rounded.

    Raises:
        OSError: the disk is full.
        CheckpointError: the source cannot be read any more.
    """
    groups = [parameter.outputs for parameter in plan.parameters]
    computing = device_lock()
    total = sum(plan.output_bytes.values())
    squares: dict[str, list[tuple[float, float]]] = {}

    def blocks() -> Iterator[tuple[ParameterPlan, int, int]]:
        for parameter in plan.parameters:
            for start, stop in row_blocks(parameter.shape, BLOCK_VALUES):
                yield parameter, start, stop

    with ShardWriter(folder, split_into_shards(groups, max_shard_bytes)) as writer:

        def work(block: tuple[ParameterPlan, int, int]) -> tuple[str, int, tuple[float, float]]:
            parameter, start, stop = block
            with computing:
                rows, errors = transform_rows(source, parameter, start, stop)
            for name, array in rows.items():
                writer.write(name, start, as_bytes(array))
            return parameter.path, sum(array.nbytes for array in rows.values()), errors

        done = 0
        for path, size, errors in work_through(blocks(), work):
            if errors[0]:
                squares.setdefault(part_of(path) or path, []).append(errors)
            done += size
            if progress:
                progress(ProgressEvent("converting", done, total, "B"))
        writer.finish()
    mx.clear_cache()
    return {part: _relative(sums) for part, sums in sorted(squares.items())}


def _relative(sums: list[tuple[float, float]]) -> float:
    # Exact sums do not depend on which block came first.
    errors, values = (math.fsum(column) for column in zip(*sums, strict=True))
    return float(f"{math.sqrt(errors / values):.3g}") if values else math.inf
