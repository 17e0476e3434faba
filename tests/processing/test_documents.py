"""HEIC photos, pages of PDF files, frames of image files, and what to say without the extras."""

import io
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jvlm_mlx.errors import ImageError, PromptError, RequestError
from jvlm_mlx.processing import pdf as pdf_module
from jvlm_mlx.processing.documents import expand
from jvlm_mlx.processing.image_io import open_image, read_image
from jvlm_mlx.processing.image_processor import ImageProcessor
from tests.helpers.image_files import PIXELS, assert_opens, encode, error_line
from tests.helpers.image_goldens import RELEASED, RELEASED_IDS
from tests.helpers.pdf_files import page_of, stream

HEIC = Path(__file__).parents[1] / "golden" / "images" / "turned.heic"
COLORS = ("red", "lime", "blue")
RGB = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


def pdf(colors=COLORS, size=(200, 100)):
    pages = [Image.new("RGB", size, color) for color in colors]
    return encode(pages[0], "PDF", save_all=True, append_images=pages[1:])


@pytest.fixture
def report(tmp_path):
    path = tmp_path / "report.pdf"
    path.write_bytes(pdf())
    return str(path)


def colors_of(sources):
    images = [open_image(source) for source in sources]
    middles = [image.getpixel((image.width // 2, image.height // 2)) for image in images]
    return [tuple(round(value / 255) * 255 for value in middle) for middle in middles]


# HEIC


@pytest.fixture
def without(monkeypatch):
    """Makes a module look as if it were not installed."""

    def hide(name):
        monkeypatch.setitem(sys.modules, name, None)
        find_spec = pdf_module.importlib.util.find_spec
        monkeypatch.setattr(
            pdf_module.importlib.util,
            "find_spec",
            lambda wanted: None if wanted == name else find_spec(wanted),
        )

    return hide


def test_heic_stands_upright():
    pytest.importorskip("pi_heif")
    image = open_image(HEIC)
    assert image.size == read_image(HEIC).size == (48, 64)
    corners = np.asarray(image)[[5, 5, 60, 60], [5, 40, 5, 40]].astype(int)
    expected = [(200, 30, 30), (200, 30, 30), (30, 40, 210), (20, 180, 40)]
    assert np.abs(corners - expected).max() < 12


def test_damaged_heic():
    pytest.importorskip("pi_heif")
    data = HEIC.read_bytes()
    for part in (0.1, 0.5, 0.9):
        line = error_line(data[: int(len(data) * part)])
        assert "cannot be decoded" in line or "no image" in line or "is HEIC" in line


def test_heic_without_the_extra(without, monkeypatch):
    without("pi_heif")
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    line = error_line(HEIC)
    assert "is HEIC; install jvlm-mlx[heic] to open it, or convert it to JPEG: sips -s" in line


# Pages of PDF files


@pytest.mark.parametrize(
    ("fragment", "expected"),
    [
        ("", RGB), ("#1", RGB[:1]), ("#3", RGB[2:]), ("#2-3", RGB[1:]), ("#2-", RGB[1:]),
        ("#1-3", RGB),
    ],
)  # fmt: skip
def test_pages_of_a_pdf(report, fragment, expected):
    pages = expand(report + fragment)
    assert colors_of(pages) == list(expected)
    first = int(fragment[1]) if fragment else 1
    assert pages[0].name == f"page {first} of '{report}{fragment}'"


def test_every_kind_of_source_of_a_pdf(report, tmp_path, monkeypatch):
    data = Path(report).read_bytes()
    for source in (data, bytearray(data), Path(report), Path(report).as_uri()):
        assert colors_of(expand(source)) == list(RGB)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert colors_of(["~/report.pdf#2"]) == [RGB[1]]
    upper = tmp_path / "SCAN.PDF"
    upper.write_bytes(data)
    assert len(expand(upper)) == 3


def test_a_pdf_on_the_web(monkeypatch):
    answers = {"http://host/a.pdf": pdf(), "https://host/b.PDF?x=1": encode(Image.new("L", (9, 5)))}
    monkeypatch.setattr(
        "jvlm_mlx.processing.sources.download", lambda url, *_, **__: (answers[url], "text/plain")
    )
    assert colors_of(expand("http://host/a.pdf#2-")) == list(RGB[1:])
    assert colors_of(["http://host/a.pdf#3"]) == [RGB[2]]
    assert read_image("https://host/b.PDF?x=1").size == (9, 5)


def test_one_page_is_an_image_and_several_are_not(report):
    assert read_image(report + "#2").size == open_image(report + "#2").size
    line = error_line(report)
    assert line == f"'{report}' has 3 pages; name one of them: FILE#1"


def test_pages_are_drawn_as_large_as_the_tiles_can_use():
    processor = ImageProcessor(RELEASED, RELEASED_IDS)
    (page,) = processor.expand(pdf(COLORS[:1], (300, 200)))
    width, height = page.drawn_size
    assert 0.99 < width * height / RELEASED.max_pixels <= 1.001
    assert abs(width / height - 1.5) < 0.01
    assert processor.open(page).layout.num_tiles == processor.layout(3000, 2000).num_tiles


def test_a_page_that_is_turned_is_drawn_upright():
    """A mark on the left of a page that is to be turned by a right angle ends up on top."""
    mark = stream(b"1 0 0 rg 0 0 40 100 re f")
    (page,) = expand(
        page_of(mark, box=b"0 0 200 100] /Rotate 90 /UserUnit 1 /CropBox [0 0 200 100")
    )
    width, height = page.drawn_size
    assert height / width == pytest.approx(2, abs=0.01)
    image = open_image(page)
    assert image.getpixel((width // 2, 10)) == (255, 0, 0)
    assert image.getpixel((width // 2, height - 10)) == (255, 255, 255)


def test_a_file_may_be_called_like_a_page(tmp_path):
    path = tmp_path / "scan.png#2"
    path.write_bytes(encode(Image.fromarray(PIXELS)))
    assert_opens(path, PIXELS)
    called = tmp_path / "image.pdf"
    called.write_bytes(encode(Image.fromarray(PIXELS)))
    assert expand(called) == [called]
    assert_opens(called, PIXELS)


@pytest.mark.parametrize(
    ("fragment", "end"),
    [
        ("#4", "has 3 pages, and no page 4"),
        ("#2-9", "has 3 pages, and no page 9"),
        ("#0", "has no such pages; they are counted from 1"),
        ("#3-2", "has no such pages; they are counted from 1"),
    ],
)
def test_pages_that_there_are_not(report, fragment, end):
    assert error_line(report + fragment).endswith(end)


def test_too_many_pages(report, monkeypatch):
    monkeypatch.setattr(pdf_module, "MAX_PAGES", 2)
    with pytest.raises(ImageError, match=r"has 3 pages; at most 2 .* name some: FILE#1-10"):
        expand(report)
    assert len(expand(report + "#2-")) == 2


def test_damaged_and_encrypted_pdfs(report):
    data = Path(report).read_bytes()
    for damaged in (data[:200], b"%PDF-1.7\n" + b"x" * 1000):
        assert "cannot be read" in error_line(damaged)
    protected = data.replace(
        b"trailer\n<<", b"trailer\n<< /Encrypt << /Filter /Standard /V 1 /R 2 /P -4"
        b" /O (" + b"o" * 32 + b") /U (" + b"u" * 32 + b") >>"
    )  # fmt: skip
    assert protected != data
    assert "password" in error_line(protected) or "cannot be read" in error_line(protected)


def test_a_pdf_that_never_ends(report, monkeypatch, tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(pdf_module, "_WORKER", worker)
    monkeypatch.setattr(pdf_module, "MAX_SECONDS", 0.3)
    started = []
    popen = subprocess.Popen

    def note(*arguments, **keywords):
        started.append(popen(*arguments, **keywords))
        return started[-1]

    monkeypatch.setattr(pdf_module.subprocess, "Popen", note)
    assert error_line(report + "#1").endswith("takes longer than 0.3 seconds to read")
    cancel = threading.Event()
    cancel.set()
    monkeypatch.setattr(pdf_module, "MAX_SECONDS", 30)
    before = time.monotonic()
    with pytest.raises(RequestError, match="canceled"):
        read_image(report + "#1", cancel=cancel)
    assert time.monotonic() - before < 20
    assert [process.poll() is not None for process in started] == [True, True]
    worker.write_text("raise SystemExit(9)\n")
    assert "too much time or memory, or is damaged" in error_line(report + "#1")


def test_memory_of_the_worker_is_limited(report, monkeypatch):
    monkeypatch.setattr(pdf_module, "MAX_MEMORY", 2**20)
    line = error_line(report + "#1")
    assert "too much" in line or "cannot be read" in line


def test_pdf_without_the_extra(report, without):
    without("pypdfium2")
    line = error_line(report + "#1")
    assert "is PDF; install jvlm-mlx[pdf] to open its pages, or save them as images" in line


def test_a_pdf_in_a_file_object_says_what_to_do():
    line = error_line(io.BytesIO(pdf()))
    assert line.endswith("is PDF; give its bytes, or its path if that ends in .pdf")


# Frames of image files


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_frames(kind, tmp_path):
    frames = [Image.new("RGB", (16, 8), color) for color in RGB]
    options = {"lossless": True} if kind == "WEBP" else {}
    path = tmp_path / f"scan.{kind.lower()}"
    path.write_bytes(encode(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert colors_of([path]) == [RGB[0]]  # the first, as ever
    assert colors_of(expand(f"{path}#1-3")) == list(RGB)
    assert colors_of([f"{path}#3"]) == [RGB[2]]
    assert colors_of(expand(f"{path}#2-")) == list(RGB[1:])
    assert error_line(f"{path}#9").startswith(f"frame 9 of '{path}'")
    assert "expected 1 to 100" in error_line(f"{path}#1-500")
    assert "expected 1 to 100" in error_line(f"{path}#0")


def test_frames_of_different_sizes(tmp_path):
    frames = [Image.new("RGB", size) for size in ((16, 8), (30, 20))]
    path = tmp_path / "scan.tiff"
    path.write_bytes(encode(frames[0], "TIFF", save_all=True, append_images=frames[1:]))
    assert [read_image(page).size for page in expand(f"{path}#1-2")] == [(16, 8), (30, 20)]


def test_frames_that_take_too_long_to_come_to(tmp_path, monkeypatch):
    frames = [Image.new("RGB", (16, 8), color) for color in RGB]
    path = tmp_path / "film.gif"
    path.write_bytes(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    monkeypatch.setattr("jvlm_mlx.processing.image_decoding.MAX_SCANNED_PIXELS", 16 * 8 * 2)
    assert open_image(f"{path}#2").size == (16, 8)
    assert "frame 3 of" in error_line(f"{path}#3")
    assert "takes too long to come to" in error_line(f"{path}#3")


# Prompts


def test_a_pdf_in_a_prompt_is_all_its_pages(tiny, report):
    _, processor = tiny
    pages = [open_image(page) for page in processor.image_processor.expand(report)]
    expected = processor.prepare("What?", pages)
    assert len(expected.images) == 3
    found = processor.prepare("What?", report)
    np.testing.assert_array_equal(found.token_ids, expected.token_ids)
    np.testing.assert_array_equal(found.inputs.pixel_values, expected.inputs.pixel_values)
    message = {
        "role": "user",
        "content": [{"type": "image", "path": report}, {"type": "text", "text": "What?"}],
    }
    found = processor.prepare([message])
    np.testing.assert_array_equal(found.token_ids, expected.token_ids)
    with pytest.raises(PromptError, match="1 image parts without"):
        processor.prepare([{"role": "user", "content": [{"type": "image"}]}])
