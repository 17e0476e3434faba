"""Whether this device computes what it should: every stage, cache, batch and weight format.

`comparison` says what is computed and how far off it is; here is what is compared, what is allowed,
and what the findings say.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import mlx.core as mx
import numpy as np

from ..config.dtypes import BY_MLX
from ..config.model_config import ModelConfig
from ..generation import device
from .comparison import Run, Sample, row_error
from .report import Finding, guarded

TOLERANCES = {mx.float32: 0.01, mx.float16: 0.02, mx.bfloat16: 0.1}
"""Of a row's norm. Some GPUs round factors to 11 bits in float32, which float16 has as well, and
bfloat16 8; sums in another order round elsewhere. A kernel that leaves out a mask or a position, or
takes a wrong head, is off by more than twice the largest of these."""

LONG_CONTEXTS = (300, 1100, 4200)
"""Tokens in the cache: from 1,024 keys on, and from 4,096, MLX may take other kernels."""
BATCHES = (2, 3, 5, 8)
_ADVICE = (
    "answers of this device are wrong: update MLX and the system; until then set"
    " mx.set_default_device(mx.cpu), and please report this"
)


def check_equality(
    config: ModelConfig, dtypes: Sequence[mx.Dtype], main: mx.Dtype
) -> Iterator[Finding]:
    """Yield how far results are from what they should be.

    Args:
        config: geometry; few layers are enough.
        dtypes: to examine every stage in.
        main: what caches, batches and packed weights are examined in.
    """
    for dtype in dtypes:
        name = BY_MLX[dtype].name
        yield from guarded(f"equality, {name}", partial(_check_stages, config, dtype, name))
    yield from guarded("equality, decoder", partial(_check_decoder, config, main))
    for bits in (8, 4):
        yield from guarded(
            f"equality, {bits}-bit weights", partial(_check_packed, config, main, bits)
        )


def _check_stages(config: ModelConfig, dtype: mx.Dtype, name: str) -> Iterator[Finding]:
    sample = Sample(config, dtype)
    stages = {
        "tower": sample.tower,
        "connector": sample.connector,
        "prefill": sample.hidden,
        "head": sample.head,
        "image, prompt and a step": sample.answer,
    }
    for stage, run in stages.items():
        yield from _compared(f"{stage}, {name}", sample, run)
    yield from guarded(f"activations, {name}", partial(_check_types, sample, stages, name))


def _check_types(sample: Sample, stages: Mapping[str, Run], name: str) -> Iterator[Finding]:
    """Yield whether all stages compute in the type of their weights."""
    found = {stage: run(sample.model).dtype for stage, run in stages.items()}
    others = [stage for stage, one in found.items() if one != sample.dtype]
    yield Finding(
        f"activations, {name}",
        "of this type in every stage" if not others else f"of another type: {', '.join(others)}",
        f"{others[0]} computes in another type than its weights: please report this"
        if others
        else None,
    )


def _check_decoder(config: ModelConfig, dtype: mx.Dtype) -> Iterator[Finding]:
    sample = Sample(config, dtype)
    chunks = partial(sample.hidden, length=100, chunk=32)
    yield from _compared("prefill in chunks", sample, chunks, partial(sample.hidden, length=100))
    for tokens in LONG_CONTEXTS:
        name = f"{tokens:,} tokens in the cache"
        yield from _compared(f"step, {name}", sample, partial(sample.after, tokens, 1))
        yield from _compared(f"16 tokens, {name}", sample, partial(sample.after, tokens, 16))
    for rows in BATCHES:
        yield from _compared(
            f"batch of {rows}, left-padded", sample,
            partial(sample.batch, rows), partial(sample.single_rows, rows),
        )  # fmt: skip
    yield from _compared("rotating cache", sample, sample.rotating)
    for bits in (8, 4):
        yield from _compared(f"{bits}-bit cache", sample, partial(sample.packed_cache, bits))
    yield from guarded("the same twice", partial(_check_repeats, sample))


def _check_packed(config: ModelConfig, dtype: mx.Dtype, bits: int) -> Iterator[Finding]:
    sample = Sample(config, dtype, bits)
    ids = sample.token_ids()
    name = f"{bits}-bit weights"
    yield from _compared(f"embedding, {name}", sample, lambda model: model.decoder.embed(ids))
    yield from _compared(f"tower, {name}", sample, sample.tower)
    yield from _compared(f"prefill, {name}", sample, sample.hidden)
    yield from _compared(f"step, {name}", sample, partial(sample.after, 20, 1))
    yield from _compared(f"5 tokens, {name}", sample, partial(sample.after, 20, 5))
    yield from _compared(f"head, {name}", sample, sample.head)


def _compared(
    name: str, sample: Sample, run: Run, expected: Run | None = None
) -> Iterator[Finding]:
    """Yield the finding of one comparison."""

    def compare() -> Iterator[Finding]:
        error, allowed = sample.error(run, expected), TOLERANCES[sample.dtype]
        yield Finding(
            name,
            f"relative error {error:.1e}, {allowed:.0e} allowed",
            None if error <= allowed else _ADVICE,
            data={"error": error if np.isfinite(error) else None, "allowed": allowed},
        )

    yield from guarded(name, compare)


def _check_repeats(sample: Sample) -> Iterator[Finding]:
    """Yield whether the same work gives the same bits again, here and on the worker thread."""
    results = [sample.answer(sample.model) for _ in range(2)]
    mx.eval(results)

    def on_worker() -> mx.array:
        result = sample.answer(sample.model)
        mx.eval(result)
        return result

    for name, other in (
        ("the same twice", results[1]),
        ("on another thread", device.run(on_worker)),
    ):
        is_same = bool(mx.array_equal(results[0], other).item())
        yield Finding(
            name,
            "the same bits" if is_same else f"error {row_error(other, results[0]):.1e}",
            None if is_same else _ADVICE,
        )
