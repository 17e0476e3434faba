"""The model card of a conversion: sizes, rounding errors, and the quality that was measured."""

from collections.abc import Mapping
from typing import Any

from ..checkpoint.hub import is_repository
from ..checkpoint.model_card import markdown_table, model_card
from ..checkpoint.saving import Record
from ..units import bytes_text, count_text
from .plan import Plan
from .recipes import RECIPES


def conversion_card(plan: Plan, record: Record, metadata: Mapping[str, Any]) -> str:
    """Return README.md: where the weights come from, what was done to them, what it cost."""
    revision = f" at revision `{record.revision}`" if record.revision else ""
    size, before = sum(plan.output_bytes.values()), record.source_bytes
    sections = [
        f"`{record.source}`{revision}, converted by jvlm-mlx {record.version}.",
        markdown_table(
            ("", ""),
            [
                ("weights", _describe(plan)),
                ("recipe", _recipe(record)),
                ("bits per weight", f"{plan.bits_per_weight:.2f}"),
                ("size", f"{bytes_text(size)} (source: {bytes_text(before)})"),
                ("width of the tower's MLP", _padding(plan)),
            ],
        ),
        "## Modules",
        _modules(plan, record),
        "The error is that of the rounded weights, relative to what they were rounded from,"
        " measured on every 32nd row."
        if record.weight_error
        else "Nothing was rounded: every weight has the value it had before.",
    ]
    if record.quality:
        sections += ["## Measured quality", _quality(record.quality)]
    return model_card(
        f"{record.source.rsplit('/', 1)[-1]} for MLX",
        sections,
        metadata if is_repository(record.source) else _without_base(metadata),
        base_model=record.source,
        relation="quantized" if plan.quantization else None,
    )


def _without_base(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if key != "base_model"}


def _describe(plan: Plan) -> str:
    quantization, dtypes = plan.quantization, ", ".join(plan.dtypes)
    if not quantization:
        return dtypes
    others = sum(isinstance(entry, dict) for entry in quantization.values())
    return (
        f"{quantization['mode']}, {quantization['bits']} bits in groups of"
        f" {quantization['group_size']}"
        + (f"; {others} layers in another format" if others else "")
        + f"; the rest {dtypes}"
    )


def _recipe(record: Record) -> str:
    if record.recipe is None:
        return "none"
    known = RECIPES.get(record.recipe)
    return f"{record.recipe}: {known.summary}" if known else record.recipe


def _padding(plan: Plan) -> str:
    if plan.mlp_size == plan.unpadded_mlp_size:
        return str(plan.mlp_size)
    return f"{plan.mlp_size}, padded with zeros from {plan.unpadded_mlp_size}, without effect"


def _modules(plan: Plan, record: Record) -> str:
    rows = []
    for module, values, size in plan.modules():
        error = record.weight_error.get(module)
        rows.append((
            module, count_text(values), f"{size * 8 / values:.2f}", bytes_text(size),
            "0" if error is None else f"{100 * error:.2g} %",
        ))  # fmt: skip
    return markdown_table(("module", "weights", "bits per weight", "size", "error"), rows)


def _quality(quality: Mapping[str, Any]) -> str:
    """Return the table of what `verify` measured."""
    rows = [
        ("mean KL divergence of next-token distributions", f"{quality['kl_mean']:.3g} nats"),
        ("same most probable token", f"{100 * quality['top1']:.2f} %"),
    ]
    if quality["feature_cosine"] is not None:
        rows.append(("mean cosine of image features", f"{quality['feature_cosine']:.5f}"))
    asked = f"{quality['questions']} questions, {quality['tokens']} tokens of answers"
    return markdown_table((f"compared with `{quality['reference']}`", asked), rows)
