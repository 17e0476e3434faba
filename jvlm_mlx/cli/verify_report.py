"""What `verify` measured: as tables, as JSON, and in the model card of the conversion."""

import errno
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..checkpoint.copied_files import CARD, CONFIG, card_metadata, config_text
from ..checkpoint.hub import DEMO
from ..checkpoint.loader import read_config
from ..checkpoint.model_card import model_card
from ..checkpoint.origin import origin
from ..checkpoint.record import KEY, read_record
from ..config.json_file import read_json
from ..conversion.conversion_options import ConversionOptions
from ..conversion.plan import plan_conversion
from ..conversion.source import open_source
from ..conversion.verification import Verification
from ..conversion.weight_error import severity
from ..errors import ConversionError, RequestError
from ..files import local_path
from .formatting import table


def as_text(verification: Verification) -> str:
    """Return tables for the terminal."""
    worst = {
        part: max((one for one in verification.weights if one.part == part),
                  key=lambda error: severity(error.relative))
        for part in verification.weight_errors()
    }  # fmt: skip
    sections = [
        table(
            ("part", "weight error", "largest", "in"),
            [
                (part, _percent(error), _percent(worst[part].relative), worst[part].path)
                if error else (part, "0", "0", "")
                for part, error in verification.weight_errors().items()
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
    return "\n\n".join(sections)


def as_json(verification: Verification) -> dict[str, Any]:
    """Return everything that was measured; None for what is no finite number."""
    report: dict[str, Any] = _finite({
        "source": verification.source,
        "converted": verification.converted,
        "weight_error": verification.weight_errors(),
        "tensors": [
            {"path": one.path, "part": one.part, "layer": one.layer, "error": one.relative}
            for one in verification.weights
        ],
        "answers": [asdict(answer) for answer in verification.answers],
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
    config = read_json(folder / CONFIG) if folder.is_dir() else {}
    if read_record(config) is None:
        raise RequestError(f"{folder} is no local folder that jvlm convert wrote; it has no card")
    if not os.access(folder, os.W_OK):
        raise ConversionError(f"{folder} cannot be written: {os.strerror(errno.EACCES)}")


def update_card(verification: Verification) -> None:
    """Write the measured quality into the conversion's model card and config.json.

    Raises:
        RequestError: as `check_card`.
        ConversionError: the folder cannot be written to, or what was measured is no number.
    """
    check_card(verification.converted, weights_only=not verification.answers)
    folder = local_path(verification.converted, RequestError)
    config = read_json(folder / CONFIG)
    for value in (verification.kl_mean, verification.feature_cosine):
        if value is not None and not math.isfinite(value):
            raise ConversionError(
                f"the answers of {folder} are no numbers, so its card is left as it is"
            )
    reference = verification.source.rstrip("/")
    if Path(reference).expanduser().is_dir():
        reference, _ = origin(Path(reference).expanduser())
    config[KEY]["quality"] = {
        "reference": reference,
        "questions": len(verification.answers),
        "tokens": verification.tokens,
        "kl_mean": verification.kl_mean,
        "top1": verification.top1,
        "feature_cosine": verification.feature_cosine,
    }
    record = read_record(config)
    assert record is not None
    with open_source(folder, read_config(folder).model) as source:
        plan = plan_conversion(
            source, ConversionOptions(), unpadded_mlp_size=record.unpadded_mlp_size
        )
    try:
        _replace(folder / CONFIG, config_text(config))
        _replace(folder / CARD, model_card(plan, record, card_metadata(folder)))
    except OSError as error:
        raise ConversionError(f"{folder} cannot be written: {error.strerror}") from error


def _replace(file: Path, text: str) -> None:
    """Replace a file as a whole, or not at all."""
    new = file.with_name(f".{file.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(file)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
