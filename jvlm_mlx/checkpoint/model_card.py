"""The model card of a converted checkpoint."""

from collections.abc import Sequence
from typing import Any

from huggingface_hub import ModelCardData

from ..conversion.plan import Plan
from ..conversion.recipes import RECIPES
from ..units import bytes_text, count_text
from .names import PARTS
from .origin import is_repository
from .record import Record, quantization_entries

_KEPT_METADATA = ("license", "license_name", "license_link", "language")


def model_card(plan: Plan, record: Record, metadata: dict[str, Any]) -> str:
    """Return README.md: where the weights come from, what was done to them, what it cost.

    Args:
        plan: of the conversion.
        record: about it.
        metadata: front matter of the source's own card; license and languages are kept.
    """
    quantization = quantization_entries(plan)
    from_hub = is_repository(record.source)
    data = ModelCardData(
        library_name="mlx",
        pipeline_tag="image-text-to-text",
        base_model=record.source if from_hub else None,
        base_model_relation="quantized" if from_hub and quantization else None,
        tags=["mlx", "jina-vlm", "vision-language-model"],
        **{key: metadata[key] for key in _KEPT_METADATA if metadata.get(key)},
    )
    revision = f" at revision `{record.revision}`" if record.revision else ""
    sections = [
        f"---\n{data.to_yaml()}\n---",
        f"# {record.source.rsplit('/', 1)[-1]} for MLX",
        f"`{record.source}`{revision}, converted by jvlm-mlx {record.version}.",
        _table(
            ("", ""),
            [
                ("weights", _describe(quantization, plan)),
                ("recipe", _recipe(record)),
                ("bits per weight", f"{plan.bits_per_weight:.2f}"),
                ("size", f"{bytes_text(sum(plan.output_bytes.values()))}"
                         f" (source: {bytes_text(record.source_bytes)})"),
                ("width of the tower's MLP", _padding(plan)),
            ],
        ),
        "## Parts",
        _parts(plan, record),
        "The error is that of the rounded weights, relative to what they were rounded from,"
        " measured on every 32nd row."
        if record.weight_error
        else "Nothing was rounded: every weight has the value it had before.",
    ]  # fmt: skip
    if record.quality:
        sections += ["## Measured quality", _quality(record.quality)]
    sections += [
        "## Use",
        "    pip install jvlm-mlx\n"
        '    jvlm generate --model THIS_FOLDER_OR_REPOSITORY -i photo.jpg -p "What is this?"',
    ]
    return "\n\n".join(sections) + "\n"


def _describe(quantization: dict[str, Any], plan: Plan) -> str:
    dtypes = sorted({parameter.dtype for parameter in plan.parameters})
    if not quantization:
        return ", ".join(dtypes)
    others = sum(isinstance(entry, dict) for entry in quantization.values())
    return (
        f"{quantization['mode']}, {quantization['bits']} bits in groups of"
        f" {quantization['group_size']}"
        + (f"; {others} layers in another format" if others else "")
        + f"; the rest {', '.join(dtypes)}"
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


def _parts(plan: Plan, record: Record) -> str:
    rows = []
    for part in PARTS:
        if part in plan.values:
            values, size = plan.values[part], plan.output_bytes[part]
            error = record.weight_error.get(part)
            rows.append((
                part, count_text(values), f"{size * 8 / values:.2f}", bytes_text(size),
                "0" if error is None else f"{100 * error:.2g} %",
            ))  # fmt: skip
    return _table(("part", "weights", "bits per weight", "size", "error"), rows)


def _quality(quality: dict[str, Any]) -> str:
    """Return the table of what `verify` measured."""
    rows = [
        ("mean KL divergence of next-token distributions", f"{quality['kl_mean']:.3g} nats"),
        ("same likeliest token", f"{100 * quality['top1']:.2f} %"),
    ]
    if quality["feature_cosine"] is not None:
        rows.append(("mean cosine of image features", f"{quality['feature_cosine']:.5f}"))
    asked = f"{quality['questions']} questions, {quality['tokens']} tokens of answers"
    return _table((f"compared with `{quality['reference']}`", asked), rows)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
