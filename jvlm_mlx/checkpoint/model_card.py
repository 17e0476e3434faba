"""The model card (README.md) of a checkpoint that this package has written."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..files import reason
from ..version import __version__
from .hub import is_repository, origin
from .reader import belongs_to

logger = logging.getLogger(__name__)

CARD = "README.md"
_KEPT_METADATA = ("license", "license_name", "license_link", "language", "base_model")
_USE = """## Use

    pip install jvlm-mlx
    jvlm generate --model THIS_FOLDER_OR_REPOSITORY -i photo.jpg -p "What is this?\""""
_MAX_CARD_BYTES = 2**20
_MAX_CHARACTERS = 500  # of a value that is kept


def card_metadata(folder: Path) -> dict[str, Any]:
    """Return what is kept of the front matter of a folder's model card.

    That is license, languages and base model; nothing if there is no card that can be read.
    """
    from huggingface_hub import metadata_load

    file = folder / CARD
    if not file.is_file() or not belongs_to(folder, file):
        return {}
    try:
        if file.stat().st_size > _MAX_CARD_BYTES:
            raise CheckpointError(f"it is larger than {_MAX_CARD_BYTES} bytes")
        metadata: Any = metadata_load(file) or {}
    except Exception as error:  # of the YAML library, of many kinds
        logger.warning("%s is not read: %s", file, reason(error))
        return {}
    return {key: metadata[key] for key in _KEPT_METADATA if _is_plain(metadata.get(key))}


def _is_plain(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return 0 < len(values) <= _MAX_CHARACTERS and all(
        isinstance(one, str) and 0 < len(one) <= _MAX_CHARACTERS for one in values
    )


def model_card(
    title: str,
    sections: Sequence[str],
    metadata: Mapping[str, Any],
    *,
    base_model: str,
    relation: str | None = None,
) -> str:
    """Return a model card.

    Args:
        title: without `#`.
        sections: everything between title and usage.
        metadata: front matter of the source's own card, of `card_metadata`.
        base_model: name of the source; is in the front matter if it is on the Hub.
        relation: to the base model, as the Hub spells it.
    """
    from huggingface_hub import ModelCardData

    kept = dict(metadata)
    if is_repository(base_model):
        kept["base_model"] = base_model
    data = ModelCardData(
        library_name="mlx",
        pipeline_tag="image-text-to-text",
        base_model_relation=relation if is_repository(base_model) else None,
        tags=["mlx", "jina-vlm", "vision-language-model"],
        **kept,
    )
    return "\n\n".join((f"---\n{data.to_yaml()}\n---", f"# {title}", *sections, _USE)) + "\n"


def trained_card(source: Path, how: str) -> str:
    """Return the card of a checkpoint with trained weights.

    Args:
        source: folder of the checkpoint that training began with; license and languages of its
            card are kept. What it says about quality is not, for it holds no longer.
        how: what was done, as in "trained" or "fused with adapters".
    """
    name, revision = origin(source)
    version = f" at revision `{revision}`" if revision else ""
    return model_card(
        f"{name.rsplit('/', 1)[-1]}, {how}",
        [f"The weights of `{name}`{version}, {how} by jvlm-mlx {__version__}."],
        card_metadata(source),
        base_model=name,
    )


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table for a card."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
