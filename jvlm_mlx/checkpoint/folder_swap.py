"""Refuses to replace what is no checkpoint, or what is still needed."""

from contextlib import suppress
from pathlib import Path

from ..errors import ConversionError

_RUN_FOLDER = "training"  # where a training's output has its checkpoints


def check_target(
    target: Path, source: Path | None = None, *, adapter: Path | None = None, force: bool
) -> None:
    """Refuse a target that must not be replaced.

    Args:
        target: the folder to write.
        source: folder of the checkpoint that is read; may be replaced by what is made of it,
            but not lie within what is replaced.
        adapter: folder of adapters that are read; is in no way replaced.
        force: whether an existing checkpoint is replaced.

    Raises:
        ConversionError: there is something already, and `force` is not given or would delete
            what is no checkpoint, what is read from, or checkpoints of a training. Or it is
            where the user stands.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ConversionError(f"{target} is no folder; give another path")
    if not target.exists():
        return
    with suppress(FileNotFoundError):  # a current folder that is gone holds nothing
        if _holds(target, Path.cwd()):
            raise ConversionError(f"{target} is or contains the current folder; give another path")
    if not any(target.iterdir()):
        return
    if not force:
        raise ConversionError(f"{target} exists already; give another path, or force to replace it")
    if not (target / "config.json").is_file():
        raise ConversionError(f"{target} is no checkpoint, so it is not replaced; remove it first")
    if source and target.resolve() in source.resolve().parents:
        raise ConversionError(f"{target} contains the source {source}; give another path")
    if adapter and adapter.exists() and _holds(target, adapter):
        raise ConversionError(f"{target} contains the adapter {adapter}; give another path")
    if any((target / _RUN_FOLDER).glob("step-*[0-9]")):
        raise ConversionError(
            f"{target} holds checkpoints of a training in {_RUN_FOLDER}/;"
            " move them away or give another path"
        )


def _holds(target: Path, folder: Path) -> bool:
    """Return whether a folder is the target or lies in it, however either is spelled."""
    folder = folder.resolve()
    return any(target.samefile(one) for one in (folder, *folder.parents))
