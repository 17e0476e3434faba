import base64
import io
import os
import pathlib
import threading

import mlx.core as mx
import numpy as np
import pytest
from PIL import ExifTags, Image

from jvlm_mlx.errors import ImageError
from jvlm_mlx.processing.image_io import open_image, read_image
from jvlm_mlx.processing.image_processor import ImageProcessor
from jvlm_mlx.processing.sources import SourceLimits
from tests.helpers.image_files import (
    PIXELS,
    PNG,
    TURNED,
    TURNED_PNG,
    UPRIGHT,
    assert_opens,
    error_line,
)
from tests.helpers.image_goldens import TINY, TINY_IDS


class Unseekable(io.RawIOBase):
    """A pipe: it can only be read on."""

    def __init__(self, data):
        super().__init__()
        self._stream = io.BytesIO(data)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self._stream.readinto(buffer)


# Every kind of source


def test_paths(tmp_path, monkeypatch):
    path = tmp_path / "an image # 1%20.png"
    path.write_bytes(TURNED_PNG)
    assert_opens(path, UPRIGHT)
    assert_opens(str(path), UPRIGHT)
    assert_opens(path.as_uri(), UPRIGHT)
    assert_opens(path.as_uri().replace("file:///", "FILE://localhost/"), UPRIGHT)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert_opens("~/" + path.name, UPRIGHT)
    assert_opens(pathlib.Path("~") / path.name, UPRIGHT)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes(kind):
    assert_opens(kind(TURNED_PNG), UPRIGHT)


def test_file_objects(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(TURNED_PNG)
    with path.open("rb") as stream:
        stream.read(5)
        assert_opens(stream, UPRIGHT)
        assert not stream.closed
    assert_opens(Unseekable(TURNED_PNG), UPRIGHT)


@pytest.mark.parametrize(
    "address",
    [
        "data:image/png;base64," + base64.b64encode(TURNED_PNG).decode(),
        "DATA:;BASE64," + base64.encodebytes(TURNED_PNG).decode(),
        "data:image/png;base64," + base64.b64encode(TURNED_PNG).decode().replace("+", "%2B"),
        "data:image/png," + "".join(f"%{byte:02x}" for byte in TURNED_PNG),
    ],
)
def test_data_addresses(address):
    assert_opens(address, UPRIGHT)


def test_pillow_images_are_taken_as_they_are():
    image = Image.fromarray(PIXELS)
    assert open_image(image) is image
    with Image.open(io.BytesIO(TURNED_PNG)) as opened:
        assert_opens(opened, PIXELS)
        assert opened.getexif()[ExifTags.Base.Orientation] == TURNED


@pytest.mark.parametrize("library", [np.array, mx.array], ids=["numpy", "mlx"])
def test_arrays(library):
    assert_opens(library(PIXELS), PIXELS)
    gray = PIXELS[:, :, 0]
    assert_opens(library(gray), np.stack([gray] * 3, axis=-1))
    assert_opens(library(gray[:, :, None]), np.stack([gray] * 3, axis=-1))
    alpha = np.concatenate([PIXELS, PIXELS[:, :, :1]], axis=-1)
    assert_opens(library(alpha), PIXELS)
    assert_opens(library(PIXELS)[::2, ::-1], PIXELS[::2, ::-1])


def test_anything_with_an_array():
    class Tensor:
        def __array__(self, dtype=None, copy=None):
            return PIXELS

    assert_opens(Tensor(), PIXELS)


# Errors


def test_files_that_cannot_be_opened(tmp_path, monkeypatch):
    missing = tmp_path / "missing.png"
    assert error_line(missing) == f"'{missing}' cannot be opened: No such file or directory"
    assert error_line(missing.as_uri()).endswith("No such file or directory")
    assert error_line(tmp_path) == f"'{tmp_path}' cannot be opened: Is a directory"
    assert "cannot be opened" in error_line("")
    assert "null byte" in error_line("a\0b.png")
    assert "home" in error_line("~nobody-of-this-name/a.png")
    assert "too long" in error_line("x" * 5000)
    assert error_line("file://elsewhere/a.png").endswith("expected file:///path")

    def refuse(*arguments, **keywords):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "open", refuse)
    assert error_line(missing) == f"'{missing}' cannot be opened: Permission denied"


def test_files_that_are_no_images(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("no image")
    formats = "JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF, HEIC, PPM, ICO and JPEG 2000"
    expected = f"is no image of a format that is opened: {formats}"
    assert error_line(path) == f"'{path}' {expected}"
    assert error_line(b"") == f"the image given as 0 bytes {expected}"
    assert "is no image" in error_line(io.BytesIO(b"\x00" * 100))
    assert "is no image" in error_line(b"\x89PNG\r\n\x1a\n")


def test_data_addresses_that_are_none():
    assert error_line("data:image/png;base64") == (
        "'data:image/png;base64' is no data address: there is no comma in it"
    )
    assert "is no valid base64" in error_line("data:;base64,a")
    line = error_line("data:;base64," + "!" * 100_000)
    assert "… (100013 characters) is no valid base64" in line
    assert "is no image" in error_line("data:,hello")


def test_file_objects_that_are_no_images(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(PNG)
    with path.open(encoding="latin-1") as stream:
        assert error_line(stream) == f"'{path}' is open as text; open it in binary mode"
    assert "is open as text" in error_line(io.StringIO("a"))
    with path.open("rb") as stream:
        pass
    assert error_line(stream) == f"'{path}' cannot be read: seek of closed file"


def test_pillow_images_that_cannot_be_decoded():
    with Image.open(io.BytesIO(PNG[:-40])) as image:
        assert error_line(image).startswith("the Pillow image cannot be decoded: ")
    image = Image.fromarray(PIXELS)
    image.close()
    assert error_line(image).startswith("the Pillow image cannot be decoded: ")


@pytest.mark.parametrize(
    ("array", "line"),
    [
        (PIXELS.astype(np.float32) / 255, "type float32; expected 8-bit numbers"),
        (PIXELS > 3, "type bool; expected 8-bit numbers"),
        (PIXELS.astype(np.int64), "type int64"),
        (PIXELS.transpose(2, 0, 1), "shape (3, 9, 14); expected height x width"),
        (PIXELS[:, :, :2], "shape (9, 14, 2)"),
        (PIXELS[None], "shape (1, 9, 14, 3)"),
        (PIXELS[0, :, 0], "shape (14,)"),
        (PIXELS[:0], "the array is empty: shape (0, 14, 3)"),
        (mx.array(PIXELS).astype(mx.bfloat16), "cannot be read by numpy"),
        (np.uint8(3), "shape ()"),
    ],
)
def test_arrays_that_are_no_images(array, line):
    assert line in error_line(array)


@pytest.mark.parametrize("source", [None, 3, ["a.png"], {}, object()])
def test_things_that_are_no_images(source):
    line = error_line(source)
    assert line.startswith(f"a {type(source).__name__} is no image; expected a path, a URL")


def test_pipes_and_devices(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(TURNED_PNG,))
    writer.start()
    assert_opens(pipe, UPRIGHT)
    writer.join()
    limits = SourceLimits(max_bytes=2**20)
    with pathlib.Path("/dev/zero").open("rb") as stream:
        for endless in ("/dev/zero", stream):
            with pytest.raises(ImageError, match=r"'/dev/zero' is larger than 1 MiB"):
                read_image(endless, limits)


def test_a_limit_on_pixels():
    limits = SourceLimits(max_pixels=PIXELS.size // 3)
    assert read_image(PNG, limits).size == (14, 9)
    with pytest.raises(ImageError, match="too large: 14 x 9 pixels; at most 125 pixels"):
        read_image(PNG, SourceLimits(max_pixels=PIXELS.size // 3 - 1))


def test_a_file_that_changes_after_its_size_was_read(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(PNG)
    opened = ImageProcessor(TINY, TINY_IDS).open(path)
    path.write_bytes(TURNED_PNG)
    with pytest.raises(ImageError, match="has changed since it was opened"):
        opened.load()


@pytest.mark.parametrize("name", ["data", "file", "http"])
def test_a_file_may_be_called_like_a_scheme(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (3, 2), (1, 2, 3)).save(tmp_path / name, "PNG")
    assert open_image(name).size == (3, 2)
