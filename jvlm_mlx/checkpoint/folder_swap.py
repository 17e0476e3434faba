"""Replaces a folder as a whole, or not at all."""

import ctypes
import errno
import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import ConversionError

_SWAP = 2  # RENAME_EXCHANGE of Linux and RENAME_SWAP of macOS
_CURRENT_FOLDER = -100  # AT_FDCWD of Linux
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


def check_free_space(target: Path, needed: int) -> None:
    """Refuse to start what the disk cannot hold.

    Raises:
        ConversionError: there is too little space beside the target.
    """
    parent = _existing_parent(target)
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise ConversionError(
            f"{parent} has {free / 1e9:.2f} GB free, but the checkpoint needs"
            f" {needed / 1e9:.2f} GB; free some space or give another path"
        )


def _existing_parent(target: Path) -> Path:
    parent = target.absolute().parent
    while not parent.exists():
        parent = parent.parent
    return parent


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """Give a new folder beside the target, which takes its place when all went well.

    After any error, Ctrl-C included, the new folder is gone and the target as it was. A killed
    process leaves the target as it was, too; the next one for this target clears up behind it.

    Raises:
        ConversionError: the parent folder cannot be written to, or something stands at the
            target by now that was not there before.
    """
    target = target.absolute()
    existed = target.exists() and any(target.iterdir())
    folder = target.with_name(f"{_prefix(target)}{secrets.token_hex(4)}")
    lock_file = _lock_of(folder)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        # Held as long as this process lives: so others see that the folder is in use.
        lock = lock_file.open("x")
    except OSError as error:
        raise ConversionError(f"{target} cannot be written: {error.strerror}") from None
    with lock:
        try:
            # Without locks, as on some network drives, nobody clears up behind a killed process.
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            folder.mkdir()
            yield folder
            _sync(folder)
            _put_in_place(folder, target, existed)
        finally:
            # By now this is what was replaced, or what was not completed, or nothing.
            shutil.rmtree(folder, ignore_errors=True)
            lock_file.unlink(missing_ok=True)


def _prefix(target: Path) -> str:
    return f".{target.name}.converting-"


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _remove_abandoned(target: Path) -> None:
    """Remove what killed processes left behind: nobody holds its lock any more."""
    for lock_file in target.parent.glob(f"{glob.escape(_prefix(target))}*.lock"):
        with suppress(OSError), lock_file.open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock_file.with_suffix(""), ignore_errors=True)
            lock_file.unlink()


def _put_in_place(folder: Path, target: Path, existed: bool) -> None:
    try:
        if existed:
            _exchange(folder, target)
        else:
            # Takes the place of nothing, or of an empty folder; of nothing else.
            folder.rename(target)
    except OSError as error:
        raise ConversionError(
            f"{target} cannot be put in place, so nothing was changed: {error.strerror}"
        ) from None
    _sync(target.parent)


def _exchange(one: Path, other: Path) -> None:
    """Exchange two folders in one step, so that no moment sees neither."""
    library = ctypes.CDLL(None, use_errno=True)
    first, second = os.fsencode(one), os.fsencode(other)
    if hasattr(library, "renamex_np"):  # macOS
        failed = library.renamex_np(first, second, _SWAP)
    elif hasattr(library, "renameat2"):
        failed = library.renameat2(_CURRENT_FOLDER, first, _CURRENT_FOLDER, second, _SWAP)
    else:
        failed, _ = -1, ctypes.set_errno(errno.ENOSYS)
    code = ctypes.get_errno()
    if not failed:
        return
    if code not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        raise OSError(code, os.strerror(code))
    # A file system without such an exchange: two steps, of which the second may be undone.
    aside = one.with_name(f"{one.name}-replaced")
    other.rename(aside)
    try:
        one.rename(other)
    except OSError:
        aside.rename(other)
        raise
    aside.rename(one)


def _sync(folder: Path) -> None:
    """Put a folder's entries on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
