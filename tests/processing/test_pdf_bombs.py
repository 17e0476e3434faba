"""PDFs of strangers: pages or one line, in bounded time and memory."""

import random
import subprocess
import sys
import time

import pytest

from jvlm_mlx.errors import ImageError
from jvlm_mlx.processing import pdf as pdf_module
from jvlm_mlx.processing.documents import expand
from jvlm_mlx.processing.image_io import open_image
from tests.helpers.image_files import error_line
from tests.helpers.pdf_files import (
    EMPTY_PAGE,
    forms_in_forms,
    huge_image,
    locked,
    many_pages,
    page_of,
    pages_of,
    stream,
    tiny_pattern,
)

pytest.importorskip("pypdfium2")
HEAVY = {
    "pixels beyond number": huge_image(),
    "drawing without end": page_of(stream(b"0 0 200 200 re f\n" * 3_000_000, packed=1)),
    "a text of gigabytes": page_of(stream(b" " * 10**8, packed=2)),
    "forms in forms": forms_in_forms(30),
    "a form in itself": page_of(
        stream(b"/F Do"), b"/XObject << /F 5 0 R >>",
        more=[stream(b"/F Do /F Do", b"/Type /XObject /Subtype /Form /BBox [0 0 9 9]"
                     b" /Resources << /XObject << /F 5 0 R >> >>")],
    ),
    "a tiny pattern": tiny_pattern(),
    "arrays in arrays": page_of(stream(b"[" * 10**6)),
}  # fmt: skip


def line_of(data):
    """The line that says why it cannot be opened; empty if it can."""
    try:
        open_image(data)
    except ImageError as error:
        line = str(error)
        return line if "\n" not in line else pytest.fail(line)
    return ""


@pytest.mark.parametrize(
    ("data", "end"),
    [
        (many_pages(10_000), "10000 pages; at most 100 are opened at once, so name some:"
         " FILE#1-10"),
        (locked(), "is protected by a password; save it without one"),
        (pages_of(b"2 0 R 2 0 R", 10**9), "cannot be read: Failed to load document"),
        (b"%PDF-1.7\n" + bytes(1000), "cannot be read: Failed to load document (PDFium: Data format"
         " error)."),
    ],
    ids=["many pages", "locked", "pages in a circle", "damaged"],
)  # fmt: skip
def test_what_cannot_be_opened_is_one_line(data, end):
    assert error_line(data).endswith(end)


def test_contents_that_no_pipe_holds_at_once_arrive():
    (page,) = expand(page_of(stream(b"% comment\n" * 300_000 + b"0 0 1 1 re f")))
    assert open_image(page).width > 100


@pytest.mark.parametrize("box", [b"0 0 1e30 1e30", b"0 0 0 0", b"0 0 nan 5", b"5 5 1 1"])
def test_absurd_sizes_are_drawn_within_the_limit(box):
    image = open_image(page_of(stream(b"0 0 1 1 re f"), box=box))
    assert image.width * image.height < 1.01 * 1_003_520


def test_pages_that_are_only_claimed_are_not_there():
    (page,) = expand(pages_of(b"3 0 R", 2 * 10**9, [EMPTY_PAGE]))
    assert open_image(page).size[0] > 100


@pytest.mark.parametrize("kind", HEAVY)
def test_heavy_pages_end_in_bounded_time(kind, monkeypatch):
    """Some are drawn quickly, the others stopped; no process is left."""
    started = []
    popen = subprocess.Popen

    def remember(*arguments, **keywords):
        started.append(popen(*arguments, **keywords))
        return started[-1]

    monkeypatch.setattr(pdf_module, "MAX_SECONDS", 1)
    monkeypatch.setattr(pdf_module.subprocess, "Popen", remember)
    before = time.monotonic()
    said = line_of(HEAVY[kind])
    assert said == "" or "takes longer than 1 seconds" in said or "too much time or memory" in said
    assert time.monotonic() - before < 20  # other work on the machine included
    assert all(process.poll() is not None for process in started)


def test_memory_is_limited_where_the_system_does_not_do_it(tmp_path):
    """As on macOS: the worker itself watches what it holds."""
    (tmp_path / "a.pdf").write_bytes(HEAVY["a text of gigabytes"])
    arguments = ["render", "1", "1000000", str(80 * 2**20), "30", str(tmp_path / "a.pdf")]
    script = f"""
import resource, runpy, sys
def unsupported(*_):
    raise ValueError("not here")
resource.setrlimit = unsupported
sys.argv = ["worker", *{arguments}]
runpy.run_path({str(pdf_module._WORKER)!r}, run_name="__main__")
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, b"")


def test_a_full_disk_is_one_line(monkeypatch):
    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pdf_module.tempfile, "TemporaryFile", full)
    assert error_line(many_pages(1)).endswith("cannot be read: No space left on device")


def test_damaged_documents_are_pages_or_one_line():
    rng = random.Random(1)
    whole = page_of(stream(b"0 0 100 100 re f", packed=1))
    lines = 0
    for _ in range(12):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 30)):
            data[rng.randrange(9, len(data))] = rng.randrange(256)
        lines += line_of(bytes(data[: rng.randrange(len(data) // 2, len(data) + 1)])) != ""
    assert lines
