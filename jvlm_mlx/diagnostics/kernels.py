"""Which attention kernels are fused on this device."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version

import mlx.core as mx

from .report import Finding


@dataclass(frozen=True)
class AttentionCase:
    """One kind of attention that the model does."""

    stage: str
    """Whose attention it is."""
    head_dim: int
    queries: int
    keys: int
    heads: int
    key_value_heads: int
    mask: str | None


CASES = (
    AttentionCase("tower", 72, 729, 729, 16, 16, None),
    AttentionCase("prefill", 128, 256, 256, 16, 8, "causal"),
    AttentionCase("decode step", 128, 1, 256, 16, 8, None),
)


def check_kernels(dtype: mx.Dtype) -> Iterator[Finding]:
    """Yield whether each kind of attention is one kernel here."""
    for case in CASES:
        name = f"attention, {case.stage}, head size {case.head_dim}"
        if mx.default_device().type != mx.gpu:
            yield Finding(name, "in several steps, as always on a CPU")
            continue
        error = fused_error(case, dtype)
        yield Finding(
            name,
            "fused" if error is None else "not fused",
            None if error is None else
            f"MLX {version('mlx')} has no fused kernel for this ({error}): it will be slow and"
            " take more memory; pip install -U mlx",
            data={"stage": case.stage, "fused": error is None},
        )  # fmt: skip


def fused_error(case: AttentionCase, dtype: mx.Dtype) -> str | None:
    """Return why MLX has no fused kernel for a case, or None if it has one."""
    queries = mx.zeros((1, case.heads, case.queries, case.head_dim), dtype)
    keys = mx.zeros((1, case.key_value_heads, case.keys, case.head_dim), dtype)
    try:
        # With this flag MLX raises where it would fall back to several steps.
        mx.eval(
            mx.fast.scaled_dot_product_attention(
                queries, keys, keys, scale=1.0, mask=case.mask, force_fused=True
            )
        )
    except (RuntimeError, ValueError, TypeError) as error:
        return (str(error).splitlines() or ["unknown"])[0]
    return None
