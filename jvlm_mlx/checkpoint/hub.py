"""Finds a checkpoint: a local folder, a repository of the Hugging Face Hub, or the demo.

Download, cache, resumption and offline mode are huggingface-hub's. Only data files are fetched,
never code.
"""

import logging
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import tqdm

from ..errors import CheckpointError
from ..files import local_path

logger = logging.getLogger(__name__)

DEFAULT_REPOSITORY = "jinaai/jina-vlm"
DEMO = "demo"
"""Name of the very small model that comes with this package."""
DEMO_FOLDER = Path(__file__).parent.parent / "demo" / "checkpoint"

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
CONFIG_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)
CARD_FILES = ("README.md", "LICENSE")
"""What a conversion tells about its source."""
_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")


class _SilentBar(tqdm):
    """A progress bar of the Hub that shows nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "disable": True})


def locate_checkpoint(
    path_or_repo: str | Path,
    *,
    revision: str | None = None,
    weights: bool = True,
    show_progress: bool | None = None,
) -> Path:
    """Return the folder of a checkpoint, downloading it first if it is a repository.

    Args:
        path_or_repo: a folder, or `owner/name` on the Hub. The text `demo` is always the model
            in this package; a folder of that name is `./demo`, or a `Path`.
        revision: branch, tag or commit of a repository.
        weights: whether the weights are needed too.
        show_progress: whether downloads show bars; None: if standard error is a terminal.

    Raises:
        CheckpointError: no such folder, no such repository or revision, no access, no network.
    """
    name = str(path_or_repo)
    if path_or_repo == DEMO:
        return _locate_demo(revision)
    folder = local_path(name, CheckpointError)
    if folder.is_dir():
        if revision is not None:
            raise CheckpointError(f"{name} is a local folder, which has no revision {revision!r}")
        return folder
    if folder.exists():
        raise CheckpointError(f"{name} is a file; give the folder of a checkpoint")
    if isinstance(path_or_repo, Path) or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise CheckpointError(
            f"there is no folder {name}; give a folder or a repository like {DEFAULT_REPOSITORY}"
        )
    if show_progress is None:
        show_progress = sys.stderr.isatty()
    place = f"{name} at revision {revision}" if revision else name
    try:
        snapshot = huggingface_hub.snapshot_download(
            name,
            revision=revision,
            allow_patterns=[
                *CONFIG_FILES,
                *TOKENIZER_FILES,
                *CARD_FILES,
                *(_WEIGHT_FILES if weights else ()),
            ],
            tqdm_class=tqdm if show_progress else _SilentBar,
        )
    except GatedRepoError:
        raise CheckpointError(
            f"{place} asks for permission first; request it on the Hub and log in"
        ) from None
    except RevisionNotFoundError:
        raise CheckpointError(f"{name} has no revision {revision!r}") from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"there is no folder and no repository {name}; a private one needs a login"
        ) from None
    except OfflineModeIsEnabled:
        raise CheckpointError(
            f"{place} is not in the local cache, and offline mode is on (HF_HUB_OFFLINE)"
        ) from None
    except LocalEntryNotFoundError:
        raise CheckpointError(
            f"{place} is not in the local cache, and the Hub cannot be reached; check the network"
        ) from None
    except HFValidationError as error:
        raise CheckpointError(f"{name} is no repository name: {error}") from None
    except Exception as error:  # the HTTP library's and the file system's, of many kinds
        summary = str(error).strip().splitlines()
        raise CheckpointError(
            f"{place} cannot be downloaded: {summary[0] if summary else type(error).__name__}"
        ) from error
    return Path(snapshot)


def _locate_demo(revision: str | None) -> Path:
    if revision is not None:
        raise CheckpointError(f"{DEMO} comes with this package and has no revision {revision!r}")
    if not (DEMO_FOLDER / "config.json").is_file():
        raise CheckpointError(
            f"this installation lacks the model {DEMO}; install the package again,"
            f" or give ./{DEMO} if you mean a folder"
        )
    if Path(DEMO, "config.json").is_file():
        logger.warning("%s is the model of this package; the folder here is ./%s", DEMO, DEMO)
    return DEMO_FOLDER
