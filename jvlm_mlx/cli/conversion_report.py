"""What convert, verify and inspect print: tables for the terminal, JSON for programs."""

import math
from dataclasses import asdict
from typing import Any

from ..conversion.converter import Conversion
from ..conversion.inspection import CACHE_TOKENS, Inspection
from ..conversion.verification import Verification
from ..conversion.weight_error import severity
from ..model.activations import float16_verdict
from ..units import bytes_text, count_text
from .formatting import table

_FLOAT16_TEXTS = {
    "safe": "safe",
    "close": "close to its limit of 65,504: other images may exceed it",
    "overflows": "overflows: compute this module in bfloat16",
}


def conversion_text(conversion: Conversion) -> str:
    """Return what a conversion did, or would do, for the terminal."""
    plan = conversion.plan
    rows = []
    for module, values, size in plan.modules():
        error = conversion.weight_error.get(module)
        rows.append((
            module, count_text(values), bytes_text(plan.source_bytes.get(module, 0)),
            bytes_text(size), f"{size * 8 / values:.2f}",
            "" if error is None else f"{100 * error:.2g} %",
        ))  # fmt: skip
    rows.append((
        "all", count_text(sum(plan.values.values())), bytes_text(sum(plan.source_bytes.values())),
        bytes_text(sum(plan.output_bytes.values())), f"{plan.bits_per_weight:.2f}", "",
    ))  # fmt: skip
    head = ("module", "weights", "before", "after", "bits/weight", "weight error")
    # In a dry run nothing was rounded, so there is no error to show.
    columns = slice(None) if conversion.path else slice(-1)
    lines = [table(head[columns], [row[columns] for row in rows])]
    if plan.dropped:
        lines.append(f"dropped: {len(plan.dropped)} tensors that nothing needs")
    if plan.mlp_size != plan.unpadded_mlp_size:
        lines.append(f"tower's MLP: {plan.unpadded_mlp_size} padded to {plan.mlp_size}")
    lines.append(f"written: {conversion.path}" if conversion.path else "nothing was written")
    return "\n".join(lines)


def verification_text(verification: Verification) -> str:
    """Return tables for the terminal."""
    worst = {
        module: max((one for one in verification.weights if one.module == module),
                  key=lambda error: severity(error.relative))
        for module in verification.weight_errors()
    }  # fmt: skip
    sections = [
        table(
            ("module", "weight error", "largest", "in"),
            [
                (module, _percent(error), _percent(worst[module].relative), worst[module].path)
                if error else (module, "0", "0", "")
                for module, error in verification.weight_errors().items()
            ],
            left=(0, 3),
        )
    ]  # fmt: skip
    if verification.answers:
        rows = [
            (
                answer.name,
                str(answer.tokens),
                f"{answer.kl_mean:.3g}",
                f"{answer.kl_max:.3g}",
                _percent(answer.top1),
                "never" if answer.first_divergence is None else str(answer.first_divergence),
                "" if answer.feature_cosine is None else f"{answer.feature_cosine:.5f}",
            )
            for answer in verification.answers
        ]
        cosine = verification.feature_cosine
        rows.append((
            "all", str(verification.tokens), f"{verification.kl_mean:.3g}",
            f"{max((answer.kl_max for answer in verification.answers), key=severity):.3g}",
            _percent(verification.top1 or 0.0), "", "" if cosine is None else f"{cosine:.5f}",
        ))  # fmt: skip
        head = ("question", "tokens", "KL mean", "KL max", "top-1", "diverges at", "cosine")
        sections.append(table(head, rows))
        sections.append(_activations(verification))
    return "\n\n".join(sections)


def _activations(verification: Verification) -> str:
    """Return how large the numbers of each module become, and whether float16 holds them."""
    rows = [
        (
            module,
            f"{one.largest:.4g}",
            "" if one.layer is None else str(one.layer),
            _FLOAT16_TEXTS[float16_verdict(one.largest)],
        )
        for module, one in verification.largest_activations().items()
    ]
    return table(("module", "largest activation", "in layer", "float16"), rows, left=(0, 3))


def verification_json(verification: Verification) -> dict[str, Any]:
    """Return everything that was measured; None for what is no finite number."""
    report: dict[str, Any] = _finite({
        "source": verification.source,
        "converted": verification.converted,
        "weight_error": verification.weight_errors(),
        "tensors": [
            {"path": one.path, "module": one.module, "layer": one.layer, "error": one.relative}
            for one in verification.weights
        ],
        "answers": [asdict(answer) for answer in verification.answers],
        "activations": [asdict(one) for one in verification.activations],
        "float16": {
            module: float16_verdict(one.largest)
            for module, one in verification.largest_activations().items()
        },
        "kl_mean": verification.kl_mean,
        "top1": verification.top1,
        "feature_cosine": verification.feature_cosine,
        "bounds": asdict(verification.bounds),
        "violations": verification.violations(),
    })  # fmt: skip
    return report


def _finite(value: Any) -> Any:
    """Return a value with None in place of NaN and infinities, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def inspection_text(inspection: Inspection) -> str:
    """Return a description for the terminal."""

    def number(value: float | None, digits: int = 2) -> str:
        return "?" if value is None else f"{value:.{digits}f}"

    def count(value: int | None) -> str:
        return "?" if value is None else count_text(value)

    rows = [
        (
            module.name,
            str(module.tensors),
            count(module.weights),
            number(module.bits_per_weight),
            bytes_text(module.bytes),
            ", ".join(module.formats),
        )
        for module in inspection.modules
    ]
    rows.append(
        (
            "all",
            str(sum(module.tensors for module in inspection.modules)),
            count(inspection.weights),
            number(inspection.bits_per_weight),
            bytes_text(inspection.bytes),
            "",
        )
    )
    head = ("module", "tensors", "weights", "bits/weight", "size", "stored as")
    lines = [
        f"{inspection.path}: {inspection.layout} layout, {inspection.files} weight files",
        table(head, rows, left=(0, 5)),
        f"memory when loaded: {bytes_text(inspection.loaded_bytes)}",
    ]
    if inspection.cache_bytes is not None:
        size = bytes_text(inspection.cache_bytes)
        lines.append(f"KV cache for {CACHE_TOKENS:,} tokens: {size}")
    if inspection.unused_bytes:
        lines.append(f"never loaded: {bytes_text(inspection.unused_bytes)}")
    if inspection.missing:
        lines.append(f"missing here: {inspection.missing} tensors of the model")
    return "\n".join(lines)


def inspection_json(inspection: Inspection) -> dict[str, Any]:
    """Return everything that was found."""
    return asdict(inspection) | {
        "bytes": inspection.bytes,
        "weights": inspection.weights,
        "bits_per_weight": inspection.bits_per_weight,
    }


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.3g} %"
