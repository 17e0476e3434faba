"""The model card of what training wrote."""

from pathlib import Path

from huggingface_hub import ModelCardData

from ..checkpoint.copied_files import card_metadata
from ..checkpoint.origin import is_repository, origin
from ..version import __version__

_KEPT_METADATA = ("license", "license_name", "license_link", "language", "base_model")


def trained_card(source: Path, how: str) -> str:
    """Return README.md of a trained checkpoint.

    Args:
        source: folder of the checkpoint that training began with; license and languages of its
            card are kept. What it says about quality is not, for it holds no longer.
        how: what was done, as in "trained" or "fused with adapters".
    """
    metadata = card_metadata(source)
    kept = {key: metadata[key] for key in _KEPT_METADATA if metadata.get(key)}
    name, revision = origin(source)
    if is_repository(name):
        kept["base_model"] = name
    data = ModelCardData(
        library_name="mlx",
        pipeline_tag="image-text-to-text",
        tags=["mlx", "jina-vlm", "vision-language-model"],
        **kept,
    )
    version = f" at revision `{revision}`" if revision else ""
    sections = (
        f"---\n{data.to_yaml()}\n---",
        f"# {name.rsplit('/', 1)[-1]}, {how}",
        f"The weights of `{name}`{version}, {how} by jvlm-mlx {__version__}.",
        "## Use",
        "    pip install jvlm-mlx\n"
        '    jvlm generate --model THIS_FOLDER_OR_REPOSITORY -i photo.jpg -p "What is this?"',
    )
    return "\n\n".join(sections) + "\n"
