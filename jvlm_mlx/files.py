"""Paths a user gave, and files and folders that are written as a whole or not at all.

Everything is written to a temporary name beside the target, put on the disk and renamed, so that
no moment shows half of it.
"""

import ctypes
import errno
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from .errors import JvlmError
from .temporary_names import (
    is_open_file,
    locked,
    remove_abandoned,
    short_name,
    temporary_folder,
    temporary_name,
)

_LOCK_TRIES, _LOCK_SECONDS = 5, 0.25
MAX_QUOTED = 100
"""Longest path that a message quotes in full, where it may be no path at all."""
_MAX_REASON = 300
_SWAP = 2  # RENAME_EXCHANGE of Linux and RENAME_SWAP of macOS
_CURRENT_FOLDER = -100  # AT_FDCWD of Linux


def local_path(path: str | Path, error_type: type[JvlmError]) -> Path:
    """Return a path that can be looked up, with the home folder in place of `~`.

    Args:
        path: as the user wrote it; whether something is there does not matter.
        error_type: what to raise.

    Raises:
        JvlmError: of this type; the user of a `~user` does not exist, the path is too long, or
            its folder may not be read.
    """
    try:
        expanded = Path(path).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError):
            expanded.stat()
    except (OSError, RuntimeError, ValueError) as error:
        name = str(path)
        name = name if len(name) <= MAX_QUOTED else f"{name[:MAX_QUOTED]}…"
        raise error_type(f"{name} cannot be looked up: {reason(error)}") from None
    return expanded


def reason(error: BaseException) -> str:
    """Return why something failed, in one line: the system's words without the path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:_MAX_REASON]


@contextmanager
def atomic_file(
    path: Path, error_type: type[JvlmError], *, suffix: str | None = None
) -> Iterator[Path]:
    """Give an empty temporary file that takes the target's place when the block ends well.

    A new file has the permissions that the umask leaves, a replaced one those it had. A symbolic
    link stays one: what it points to is replaced. The block should do nothing but write.

    Args:
        path: of the file.
        error_type: what to raise.
        suffix: of the temporary name, for writers that go by it; None for the target's own.

    Raises:
        JvlmError: of this type, in one line: the target is no regular file, its folder cannot be
            written to, the disk is full.
    """
    # MLX and safetensors raise RuntimeError, chart libraries ValueError.
    with _as_one_line(path, error_type, (OSError, RuntimeError, ValueError)), ExitStack() as stack:
        target = path.resolve() if path.is_symlink() else path.absolute()
        mode = None
        if target.exists():
            if not target.is_file():
                raise error_type(f"{path} is no regular file; give another name")
            mode = stat.S_IMODE(target.stat().st_mode)
            if not os.access(target, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        remove_abandoned(target)
        temporary = temporary_name(target, target.suffix if suffix is None else suffix)
        stack.callback(temporary.unlink, missing_ok=True)
        stack.callback(os.close, locked(temporary, 0o666 if mode is None else 0o600))
        yield temporary
        sync(temporary)
        if mode is not None:
            temporary.chmod(mode)
        temporary.replace(target)
        sync(target.parent)


@contextmanager
def atomic_folder(
    target: Path,
    error_type: type[JvlmError],
    *,
    check: Callable[[], None] | None = None,
    replace: bool = False,
) -> Iterator[Path]:
    """Give an empty temporary folder that takes the target's place when the block ends well.

    After any error, Ctrl-C included, the temporary folder is gone and the target as it was.
    Meanwhile nobody else can write the same target.

    Args:
        target: the folder.
        error_type: what to raise.
        check: called last, when nothing but the rename is left to do; may refuse by raising.
        replace: whether a folder that is not empty is replaced.

    Raises:
        JvlmError: of this type, in one line: something is at the target and `replace` is not
            given, another process writes it, or the parent folder cannot be written to.
    """
    target = target.absolute()
    with _as_one_line(target, error_type, (OSError,)), ExitStack() as stack:
        for parent in reversed([one for one in target.parents if not one.exists()]):
            parent.mkdir(exist_ok=True)
            # Parents of what was not written are empty; of what was, they stay.
            stack.callback(_remove_empty, parent)
        stack.enter_context(output_lock(target, error_type))
        remove_abandoned(target)
        work = stack.enter_context(temporary_folder(target))
        work.mkdir()
        yield work
        for file in work.iterdir():
            sync(file)
        sync(work)
        if check:
            check()
        _put_in_place(work, target, replace, error_type)
        sync(target.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder; no moment shows a part of it under its name.

    Raises:
        OSError: it cannot be renamed.
    """
    folder = folder.absolute()
    with temporary_folder(folder) as work:
        folder.rename(work)


@contextmanager
def output_lock(path: Path, error_type: type[JvlmError]) -> Iterator[None]:
    """Keep other processes, and other threads, from writing the same output meanwhile.

    The lock is a file beside the output which the system unlocks when its process ends, however
    it ends. File systems without locks, such as some network drives, go without.

    Raises:
        JvlmError: of this type; another process writes to `path`, or its folder cannot be
            written to.
    """
    target = Path(os.path.realpath(path))
    file = target.with_name(f"{short_name(target)}.lock")
    while True:
        try:
            lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise error_type(f"{path} cannot be written: {reason(error)}") from None
        try:
            _lock_soon(lock)
        except BlockingIOError:
            os.close(lock)
            raise error_type(
                f"{path} is being written by another process; wait for it, or give another path"
            ) from None
        except OSError:
            pass  # no locks on this file system
        if is_open_file(lock, file):
            break
        os.close(lock)  # its holder has just removed it
    try:
        yield
    finally:
        with suppress(OSError):  # it is the lock that counts, and not its file
            file.unlink()
        os.close(lock)


def _lock_soon(descriptor: int) -> None:
    """Lock a file, or raise BlockingIOError.

    What a killed process had locked may be held for a moment by a program that it was starting.
    """
    for _ in range(_LOCK_TRIES - 1):
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(_LOCK_SECONDS / _LOCK_TRIES)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def check_free_space(target: Path, needed: int, error_type: type[JvlmError]) -> None:
    """Refuse to start what the disk cannot hold.

    Raises:
        JvlmError: of this type; fewer than `needed` bytes are free beside the target.
    """
    parent = next(parent for parent in target.absolute().parents if parent.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise error_type(
            f"{parent} has {free / 1e9:.2f} GB free, but the output needs {needed / 1e9:.2f} GB;"
            " free some space or give another path"
        )


def sync(path: Path) -> None:
    """Put a file's content, or a folder's entries, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _as_one_line(
    path: Path, error_type: type[JvlmError], kinds: tuple[type[Exception], ...]
) -> Iterator[None]:
    try:
        yield
    except kinds as error:
        raise error_type(f"{path} cannot be written: {reason(error)}") from error


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _put_in_place(work: Path, target: Path, replace: bool, error_type: type[JvlmError]) -> None:
    try:
        if replace and target.is_dir():
            _exchange(work, target)
        else:
            # Takes the place of nothing, or of an empty folder; of nothing else.
            work.rename(target)
    except OSError as error:
        raise error_type(
            f"{target} cannot be put in place, so nothing was changed: {reason(error)}"
        ) from None


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
