"""Everything in a converted checkpoint beside its weights."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import metadata_load

from ..errors import CheckpointError, PromptError
from ..processing.processor import Processor
from .hub import CARD_FILES, CONFIG_FILES, TOKENIZER_FILES

logger = logging.getLogger(__name__)

CARD = "README.md"
CONFIG = "config.json"


def copy_files(source: Path, folder: Path) -> None:
    """Copy tokenizer, template, processor and license files as they are."""
    for name in (*TOKENIZER_FILES, *CONFIG_FILES, *CARD_FILES):
        if name not in (CONFIG, CARD) and (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def check_template(folder: Path, processor: Processor) -> None:
    """Refuse a chat template that fails at an ordinary question, and so at everything.

    Args:
        folder: of the checkpoint.
        processor: of the checkpoint.

    Raises:
        CheckpointError: with what is wrong with it.
    """
    words = {"type": "text", "text": "What is this?"}
    for content in ([words], [{"type": "image"}, words]):
        try:
            processor.apply_chat_template([{"role": "user", "content": content}])
        except PromptError as error:
            raise CheckpointError(f"{folder}: {error}") from error


def config_text(config: dict[str, Any]) -> str:
    """Return config.json as it is written."""
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


def card_metadata(folder: Path) -> dict[str, Any]:
    """Return the front matter of a folder's model card; nothing if there is none to read."""
    try:
        return (metadata_load(folder / CARD) or {}) if (folder / CARD).is_file() else {}
    except Exception as error:  # of the YAML library, of many kinds
        logger.warning("%s is not read: %s", folder / CARD, str(error).splitlines()[0])
        return {}
