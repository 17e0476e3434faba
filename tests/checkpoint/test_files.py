"""Files and folders appear whole or not at all, and what killed processes left is removed."""

import os
import re
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jvlm_mlx import files, temporary_names
from jvlm_mlx.errors import ConversionError, SessionError
from jvlm_mlx.files import (
    atomic_file,
    atomic_folder,
    check_free_space,
    local_path,
    output_lock,
    remove_folder,
)
from jvlm_mlx.temporary_names import remove_abandoned

ROOT = Path(__file__).parents[2]


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def write(path, text="new", **options):
    with atomic_file(path, SessionError, **options) as temporary:
        temporary.write_text(text)


def permissions(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_is_written_beside_its_target_and_renamed(tmp_path):
    target = tmp_path / "out.json"
    target.write_text("old")
    with atomic_file(target, SessionError) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".json"
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert names(tmp_path) == ["out.json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_nothing_is_left_of_an_interrupted_file(tmp_path, error):
    target = tmp_path / "out"
    target.write_text("old")

    def interrupted():
        with atomic_file(target, SessionError) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        interrupted()
    assert names(tmp_path) == ["out"]
    assert target.read_text() == "old"


def test_new_files_follow_the_umask_and_replaced_ones_keep_their_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        write(tmp_path / "new")
        assert permissions(tmp_path / "new") == 0o640
        (tmp_path / "new").chmod(0o600)
        write(tmp_path / "new")
        assert permissions(tmp_path / "new") == 0o600
    finally:
        os.umask(before)


def test_a_link_stays_a_link_and_its_target_is_replaced(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "out"
    target.write_text("old")
    link = tmp_path / "link"
    link.symlink_to(target)
    write(link)
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert names(tmp_path / "elsewhere") == ["out"]


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_what_is_no_file_is_refused(tmp_path, kind):
    target = tmp_path / "out"
    if kind == "folder":
        target.mkdir()
    elif kind == "pipe":
        os.mkfifo(target)
    else:
        target = Path("/dev/null")
    with pytest.raises(SessionError, match="is no regular file; give another name"):
        write(target)
    assert names(tmp_path) == ([] if kind == "device" else ["out"])


def test_a_missing_folder_is_one_line(tmp_path):
    with pytest.raises(SessionError, match=r"out cannot be written: No such file or directory$"):
        write(tmp_path / "missing" / "out")


def test_names_as_long_as_a_file_system_allows_can_be_written(tmp_path):
    write(tmp_path / ("é" * 127))
    with output_lock(tmp_path / ("x" * 255), SessionError):
        pass
    assert names(tmp_path) == ["é" * 127]


def test_errors_of_the_writing_library_are_one_line(tmp_path):
    with (
        pytest.raises(SessionError, match=r"out cannot be written: \[save\] failed$"),
        atomic_file(tmp_path / "out", SessionError),
    ):
        raise RuntimeError("[save] failed\nwith a second line")
    assert names(tmp_path) == []


_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import mlx.core as mx
from jvlm_mlx.errors import SessionError
from jvlm_mlx.files import atomic_file
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    with atomic_file(Path(sys.argv[1]), SessionError) as temporary:
        mx.save_safetensors(str(temporary), {"x": mx.zeros(10_000)})
except SessionError as error:
    print(error)
"""


def test_a_full_disk_is_one_line_and_keeps_the_old_file(tmp_path):
    target = tmp_path / "out.safetensors"
    target.write_text("old")
    said = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, target],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert re.fullmatch(rf"{re.escape(str(target))} cannot be written: .+\n", said)
    assert target.read_text() == "old"
    assert names(tmp_path) == ["out.safetensors"]


_KILLED = """
import os, signal, sys
from pathlib import Path
from jvlm_mlx.errors import SessionError
from jvlm_mlx.files import atomic_file, atomic_folder
atomic = {"file": atomic_file, "folder": atomic_folder}[sys.argv[1]]
with atomic(Path(sys.argv[2]), SessionError) as temporary:
    if sys.argv[1] == "folder":
        (temporary / "part").write_text("half")
    print("in the middle", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_leftovers_of_killed_processes_are_removed_but_not_what_is_in_use(tmp_path, kind):
    atomic = {"file": atomic_file, "folder": atomic_folder}[kind]
    command = [sys.executable, "-c", _KILLED, kind, tmp_path / "out"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    (tmp_path / ".out.mine.writing").write_text("of somebody else")
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        assert process.stdout.readline() == "in the middle\n"
        during = names(tmp_path)
        if kind == "file":
            write(tmp_path / "other")
            write(tmp_path / "out")
            assert set(during) < set(names(tmp_path))
        else:
            with (
                pytest.raises(SessionError, match="out is being written by another process"),
                atomic(tmp_path / "out", SessionError),
            ):
                pass
            assert names(tmp_path) == during
        process.send_signal(signal.SIGKILL)
    assert set(during) <= set(names(tmp_path))
    with atomic(tmp_path / "out", SessionError):
        pass
    assert set(names(tmp_path)) - {"other"} == {".out.mine.writing", "out"}


def test_a_lock_refuses_threads_too_and_leaves_no_file(tmp_path):
    target = tmp_path / "out"
    refusals = []

    def compete():
        try:
            with output_lock(target, ConversionError):
                pass
        except ConversionError as error:
            refusals.append(str(error))

    with output_lock(target, ConversionError):
        thread = threading.Thread(target=compete)
        thread.start()
        thread.join()
        # What a batch does: it holds the lock all the while, and replaces the file within.
        write(target)
    assert refusals == [
        f"{target} is being written by another process; wait for it, or give another path"
    ]
    compete()
    assert len(refusals) == 1
    assert names(tmp_path) == ["out"]


def test_a_lock_that_is_given_up_at_once_is_waited_for(tmp_path):
    """A killed process may leave it for a moment to a program that it was starting."""
    target = tmp_path / "out"
    locked, release = threading.Event(), threading.Event()

    def hold():
        with output_lock(target, ConversionError):
            locked.set()
            release.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    locked.wait()
    timer = threading.Timer(0.05, release.set)
    timer.start()
    with output_lock(target, ConversionError):
        pass
    thread.join()
    timer.join()


def test_a_folder_appears_as_a_whole(tmp_path):
    target = tmp_path / "new" / "out"
    with atomic_folder(target, ConversionError) as work:
        (work / "one").write_text("1")
        assert not target.exists()
    assert names(target) == ["one"]
    assert names(target.parent) == ["out"]


def test_nothing_is_left_of_an_interrupted_folder_not_even_its_parents(tmp_path):
    def interrupted():
        with atomic_folder(tmp_path / "a" / "b" / "out", ConversionError) as work:
            (work / "one").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == []


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_replaced_only_on_demand(tmp_path, monkeypatch, exchanges):
    if not exchanges:
        monkeypatch.setattr(files.ctypes, "CDLL", lambda *_, **__: object())
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    with (
        pytest.raises(ConversionError, match="out cannot be put in place, so nothing was changed"),
        atomic_folder(target, ConversionError),
    ):
        pass
    assert names(target) == ["old"]
    with atomic_folder(target, ConversionError, replace=True) as work:
        (work / "new").write_text("new")
    assert names(target) == ["new"]
    assert names(tmp_path) == ["out"]


def test_what_cannot_be_removed_is_removed_by_the_next_writer(tmp_path, monkeypatch, caplog):
    """A replaced folder on a disk that fails, say."""
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(temporary_names.shutil, "rmtree", lambda *_, **__: None)
        with atomic_folder(target, ConversionError, replace=True) as work:
            (work / "new").write_text("new")
    assert f"{work} is not needed, but cannot be removed" in caplog.text
    assert names(target) == ["new"]
    assert names(tmp_path) == [work.name, f"{work.name}.lock", "out"]
    with atomic_folder(target, ConversionError, replace=True) as work:
        (work / "newer").write_text("newer")
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("owner", "function"), [(temporary_names.shutil, "rmtree"), (Path, "unlink")]
)
def test_a_folder_is_removed_as_a_whole(tmp_path, monkeypatch, owner, function):
    """Killed in the middle, nothing stays under its name, and the rest is found by its lock."""
    target = tmp_path / "out"
    target.mkdir()
    for name in ("one", "two"):
        (target / name).write_text(name)

    def kill(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, function, kill)
        with pytest.raises(KeyboardInterrupt):
            remove_folder(target)
    assert "out" not in names(tmp_path)
    remove_abandoned(target)
    assert names(tmp_path) == []


def test_the_last_check_may_refuse(tmp_path):
    def refuse():
        raise ConversionError("too late")

    with (
        pytest.raises(ConversionError, match="too late"),
        atomic_folder(tmp_path / "out", ConversionError, check=refuse),
    ):
        pass
    assert names(tmp_path) == []


def test_too_little_space_is_named(tmp_path):
    with pytest.raises(SessionError, match=r"free, but the output needs 1000000\.00 GB"):
        check_free_space(tmp_path / "missing" / "out", 10**15, SessionError)


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "a" * 5000, "zero\0byte"])
def test_paths_that_cannot_be_looked_up_are_one_short_line(path):
    with pytest.raises(SessionError, match="cannot be looked up") as caught:
        local_path(path, SessionError)
    assert len(str(caught.value)) < 250
