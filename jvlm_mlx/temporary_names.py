"""Temporary names beside a target, each locked (`flock`) as long as its process lives.

The next writer of the same target removes what killed processes left behind, and nothing else.
"""

import fcntl
import hashlib
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

logger = logging.getLogger(__name__)

_TEMPORARY = r"\.[0-9a-f]{8}\.writing(\..*)?"
"""What temporary names end in."""
_MAX_NAME = 180  # characters of a target's name in temporary names; file systems allow 255 bytes


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """Give a name for a folder beside the target; whatever has it at the end is removed.

    By then this is what was replaced, or what was not completed, or nothing.
    """
    work = temporary_name(target, "")
    lock_file = work.with_name(f"{work.name}.lock")
    with ExitStack() as stack:
        stack.callback(os.close, locked(lock_file, 0o666))
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)
            if os.path.lexists(work):  # the next writer finds it by its lock
                logger.warning("%s is not needed, but cannot be removed", work)
            else:
                with suppress(OSError):
                    lock_file.unlink()


def short_name(target: Path) -> str:
    """Return what the hidden names of a target begin with."""
    name = os.fsencode(target.name)
    return f".{target.name if len(name) <= _MAX_NAME else hashlib.sha256(name).hexdigest()}"


def temporary_name(target: Path, suffix: str) -> Path:
    """Return a name that nothing has."""
    return target.with_name(f"{short_name(target)}.{secrets.token_hex(4)}.writing{suffix}")


def locked(file: Path, mode: int) -> int:
    """Create a file, lock it, and return its descriptor."""
    while True:
        lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        with suppress(OSError):  # no locks on this file system
            fcntl.flock(lock, fcntl.LOCK_EX)
        if is_open_file(lock, file):
            return lock
        os.close(lock)  # another process took it for abandoned between the two lines above


def is_open_file(descriptor: int, file: Path) -> bool:
    """Return whether an open file still has its name."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), file.stat())
    return False


def remove_abandoned(target: Path) -> None:
    """Remove what killed processes left of a target.

    Raises:
        OSError: its folder cannot be read.
    """
    _remove(target.parent, re.escape(short_name(target)))


def remove_all_abandoned(folder: Path) -> None:
    """Remove what they left of any target in a folder, which may never be written again.

    That includes the locks of whole outputs.

    Raises:
        OSError: the folder cannot be read.
    """
    _remove(folder, r"\..+", rf"{_TEMPORARY}|\.lock")


def _remove(folder: Path, names: str, ends: str = _TEMPORARY) -> None:
    """Remove temporary files and folders that nobody holds a lock on any more."""
    name = re.compile(f"{names}({ends})")
    for entry in folder.iterdir():
        if not name.fullmatch(entry.name) or entry.is_dir():  # folders are found by their locks
            continue
        with suppress(OSError):
            lock = os.open(entry, os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if entry.name.endswith(".writing.lock"):
                    shutil.rmtree(entry.with_suffix(""), ignore_errors=True)
                    if os.path.lexists(entry.with_suffix("")):
                        continue  # its lock is needed to find it
                entry.unlink()
            finally:
                os.close(lock)
