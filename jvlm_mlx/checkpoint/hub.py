"""Where checkpoints are: a local folder, a repository of the Hugging Face Hub, or the demo.

Download, cache, resumption and offline mode are huggingface-hub's. Only data files are fetched,
never code.
"""

import difflib
import logging
import sys
from pathlib import Path
from typing import Any

# What the Hub's library offers is imported where it is used: it brings an HTTP client.
import huggingface_hub

from ..config.json_file import quoted
from ..errors import CheckpointError, ConversionError, RequestError
from ..files import local_path, reason

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
_CACHE_PREFIX = "models--"
_CACHE_SNAPSHOTS = "snapshots"
_NO_DOWNLOAD = f"the model {DEMO} needs no download"


def _bar_class(shown: bool) -> type:
    """Return the Hub's progress bar, or one that shows nothing."""
    from huggingface_hub.utils import tqdm

    class SilentBar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

    return tqdm if shown else SilentBar


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
        hint = f"give a folder or a repository like {DEFAULT_REPOSITORY}"
        if difflib.get_close_matches(name.strip().lower(), [DEMO], cutoff=0.8):
            hint = f"do you mean {DEMO}?"
        raise CheckpointError(f"there is no folder {name}; {hint}")
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
            tqdm_class=_bar_class(show_progress),
        )
    except Exception as error:  # the HTTP library's and the file system's, of many kinds
        raise CheckpointError(_download_problem(error, name, place, revision)) from error
    return Path(snapshot)


def _download_problem(error: Exception, name: str, place: str, revision: str | None) -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return f"{place} asks for permission first; request it on the Hub and log in"
    if isinstance(error, RevisionNotFoundError):
        return f"{name} has no revision {revision!r}"
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no folder and no repository {name}; a private one needs a login"
    if isinstance(error, HFValidationError):
        return f"{name} is no repository name: {reason(error)}"
    # What is not in the cache has a reason of its own for not being downloaded.
    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
    if isinstance(cause, OfflineModeIsEnabled):
        return (
            f"{place} is not in the local cache, and offline mode is on (HF_HUB_OFFLINE);"
            f" {_NO_DOWNLOAD}"
        )
    if isinstance(cause, HfHubHTTPError):
        return f"{place} cannot be downloaded: {hub_problem(cause)}; {_NO_DOWNLOAD}"
    if isinstance(error, LocalEntryNotFoundError):
        return (
            f"{place} is not in the local cache, and the Hub cannot be reached; check the"
            f" network; {_NO_DOWNLOAD}"
        )
    return f"{place} cannot be downloaded: {reason(error)}; {_NO_DOWNLOAD}"


def hub_problem(error: Exception) -> str:
    """Return what the Hub's answer, or its absence, means to a user."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return "offline mode is on (HF_HUB_OFFLINE)"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 429:
        return "the Hub refuses more requests for now (HTTP 429); wait some minutes, or log in"
    if status is not None and status >= 500:
        return f"the Hub itself has a problem (HTTP {status}); try again later"
    if status in (401, 403):
        return f"the Hub denies access (HTTP {status}); log in with a token that has the right"
    if status is not None:
        return f"the Hub answers HTTP {status}: {reason(error)}"
    return f"the Hub cannot be reached ({reason(error)}); check the network"


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


def origin(folder: Path) -> tuple[str, str | None]:
    """Return a name that tells others something, and the commit if that is a repository's.

    In the Hub's cache a folder is called by its commit, `models--OWNER--NAME/snapshots/COMMIT`;
    the repository is what it holds. The model of this package is the demo. Of any other folder,
    the name is all there is.
    """
    folder = folder.resolve()
    if folder == DEMO_FOLDER.resolve():
        return DEMO, None
    repository = folder.parent.parent.name
    if folder.parent.name == _CACHE_SNAPSHOTS and repository.startswith(_CACHE_PREFIX):
        return repository.removeprefix(_CACHE_PREFIX).replace("--", "/"), folder.name
    return folder.name, None


def is_repository(name: str) -> bool:
    """Return whether a name of `origin` can be looked up on the Hub."""
    return name.count("/") == 1


def check_upload(repository: str) -> None:
    """Refuse what can be no repository, before any work is done.

    Raises:
        RequestError: the name is malformed.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise RequestError(f"upload_repo {quoted(repository)}: {reason(error)}") from None


def upload(folder: Path, repository: str) -> None:
    """Upload a folder, creating the repository if need be.

    Raises:
        ConversionError: the Hub cannot be reached or refuses; the folder is complete.
    """
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repository, repo_type="model", exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repository, repo_type="model")
    except Exception as error:  # the HTTP library's and the file system's, of many kinds
        raise ConversionError(
            f"{folder} is complete, but cannot be uploaded to {repository}: {hub_problem(error)}"
        ) from error
