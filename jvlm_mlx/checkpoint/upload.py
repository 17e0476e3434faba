"""Uploads a converted checkpoint to the Hugging Face Hub."""

from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..errors import ConversionError, RequestError


def check_upload(repository: str) -> None:
    """Refuse what can be no repository, before any work is done.

    Raises:
        RequestError: the name is malformed.
    """
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise RequestError(f"upload_repo: {error}") from None


def upload(folder: Path, repository: str) -> None:
    """Upload a folder, creating the repository if need be.

    Raises:
        ConversionError: the Hub cannot be reached or refuses.
    """
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repository, repo_type="model", exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repository, repo_type="model")
    except (HfHubHTTPError, OSError) as error:
        summary = str(error).strip().splitlines() or [type(error).__name__]
        raise ConversionError(
            f"{folder} is complete, but cannot be uploaded to {repository}: {summary[0]}"
        ) from error
