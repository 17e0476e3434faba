"""Says by the place of a checkpoint's folder what the checkpoint is called."""

from pathlib import Path

from .hub import DEMO, DEMO_FOLDER

_CACHE_PREFIX = "models--"
_CACHE_SNAPSHOTS = "snapshots"


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
