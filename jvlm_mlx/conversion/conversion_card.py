"""The model card of a conversion: sizes, rounding errors, and the quality that was measured."""

import errno
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoint.hub import DEMO, is_repository, origin
from ..checkpoint.loader import read_config
from ..checkpoint.model_card import CARD, card_metadata, markdown_table, model_card
from ..checkpoint.names import PARTS
from ..checkpoint.reader import CheckpointFiles
from ..checkpoint.saving import CONFIG, RECORD_KEY, Record, config_text, read_record
from ..checkpoint.weights import Checkpoint
from ..config.json_file import read_json
from ..errors import ConversionError, RequestError
from ..files import atomic_file, local_path
from ..units import bytes_text, count_text
from .plan import Plan, plan_conversion
from .recipes import RECIPES, ConversionOptions


def conversion_card(plan: Plan, record: Record, metadata: Mapping[str, Any]) -> str:
    """Return README.md: where the weights come from, what was done to them, what it cost.

    Args:
        plan: of the conversion.
        record: about it.
        metadata: front matter of the source's own card.
    """
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
        "## Parts",
        _parts(plan, record),
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
    return markdown_table(("part", "weights", "bits per weight", "size", "error"), rows)


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


def check_card(converted: str, *, weights_only: bool) -> None:
    """Refuse a card that could not be updated, before anything is measured for it.

    Args:
        converted: the conversion, as `verify` is given it.
        weights_only: whether no questions are to be asked.

    Raises:
        RequestError: the conversion is no local folder that this package wrote, or no
            questions are asked.
        ConversionError: the folder cannot be written to.
    """
    if weights_only:
        raise RequestError("the card shows what answers were like: do not leave out the questions")
    if converted == DEMO:
        # What is measured under this name is never a folder of the user's.
        raise RequestError(f"{DEMO} comes with this package, and its card stays as it is")
    folder = local_path(converted, RequestError)
    config_json = read_json(folder / CONFIG) if folder.is_dir() else {}
    if not isinstance(config_json, dict) or read_record(config_json) is None:
        raise RequestError(f"{folder} is no local folder that jvlm convert wrote; it has no card")
    if not os.access(folder, os.W_OK):
        raise ConversionError(f"{folder} cannot be written: {os.strerror(errno.EACCES)}")


def update_card(converted: str, source: str, quality: dict[str, Any]) -> None:
    """Write the measured quality into a conversion's model card and config.json.

    Args:
        converted: folder of the conversion.
        source: what it was compared with.
        quality: figures by name, None where nothing was measured.

    Raises:
        RequestError: as `check_card`.
        ConversionError: the folder cannot be written to, or what was measured is no number.
    """
    check_card(converted, weights_only=not quality["questions"])
    folder = local_path(converted, RequestError)
    if not all(math.isfinite(value) for value in quality.values() if value is not None):
        raise ConversionError(
            f"the answers of {folder} are no numbers, so its card is left as it is"
        )
    reference = source.rstrip("/")
    if Path(reference).expanduser().is_dir():
        reference, _ = origin(Path(reference).expanduser())
    config_json = read_json(folder / CONFIG)
    config_json[RECORD_KEY]["quality"] = {"reference": reference, **quality}
    record = read_record(config_json)
    assert record is not None
    checkpoint = Checkpoint.open(CheckpointFiles(folder), read_config(folder).model)
    plan = plan_conversion(
        checkpoint, ConversionOptions(), unpadded_mlp_size=record.unpadded_mlp_size
    )
    with atomic_file(folder / CONFIG, ConversionError) as file:
        file.write_text(config_text(config_json), encoding="utf-8")
    with atomic_file(folder / CARD, ConversionError) as file:
        file.write_text(conversion_card(plan, record, card_metadata(folder)), encoding="utf-8")
