import base64
import http.server
import io
import pathlib
import socket
import struct
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile, ImageOps
from PIL.PngImagePlugin import PngInfo

from jvlm_mlx.errors import ImageError
from jvlm_mlx.images import download
from jvlm_mlx.images.orientation import exif_orientation
from jvlm_mlx.images.source import open_image

PIXELS = np.random.default_rng(1).integers(0, 256, (9, 14, 3), np.uint8)
TURNED = 6


def encode(picture, kind="PNG", **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def exif(orientation):
    block = Image.Exif()
    block[ExifTags.Base.Orientation] = orientation
    return block


PNG = encode(Image.fromarray(PIXELS))
TURNED_PNG = encode(Image.fromarray(PIXELS), exif=exif(TURNED))
UPRIGHT = np.rot90(PIXELS, -1)


def assert_opens(source, expected):
    picture = open_image(source)
    assert picture.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(picture), expected)


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of_size(width, height):
    """The first bytes of a PNG that says it is this large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0"))


class Unseekable(io.RawIOBase):
    """A pipe: it can only be read on."""

    def __init__(self, data):
        super().__init__()
        self._stream = io.BytesIO(data)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self._stream.readinto(buffer)


@pytest.fixture(scope="module")
def server():
    """Serves the turned picture at any address, or the trouble that the address names."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/missing":
                self.send_error(404)
                return
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "/picture")
                self.end_headers()
                return
            if self.path == "/slow":
                stop.wait(10)
                return
            self.send_response(200)
            self.send_header("X-Path", self.path)
            self.end_headers()
            if self.path == "/drip":
                while not stop.wait(0.05):
                    try:
                        self.wfile.write(b"x")
                    except OSError:
                        return
            elif self.path == "/text":
                self.wfile.write(b"<html>no picture here</html>")
            elif self.path.isascii():
                self.wfile.write(TURNED_PNG)

        def log_message(self, *arguments):
            pass

    stop = threading.Event()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    stop.set()
    server.shutdown()
    thread.join()
    server.server_close()


# Every kind of source


def test_paths(tmp_path, monkeypatch):
    path = tmp_path / "a picture # 1%20.png"
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
    path = tmp_path / "picture.png"
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


@pytest.mark.parametrize(
    "path", ["/picture", "/moved", "/a picture", "/bücher/图.png?größe=1", "/a%20b?c=d%26"]
)
def test_web_addresses(server, path):
    assert_opens(server + path, UPRIGHT)
    assert_opens(server.replace("http", "HTTP") + path, UPRIGHT)


def test_pillow_pictures_are_taken_as_they_are():
    picture = Image.fromarray(PIXELS)
    assert open_image(picture) is picture
    with Image.open(io.BytesIO(TURNED_PNG)) as opened:
        assert_opens(opened, PIXELS)
        assert opened.getexif()[ExifTags.Base.Orientation] == TURNED


@pytest.mark.parametrize("library", [np.array, mx.array], ids=["numpy", "mlx"])
def test_arrays(library):
    assert_opens(library(PIXELS), PIXELS)
    grey = PIXELS[:, :, 0]
    assert_opens(library(grey), np.stack([grey] * 3, axis=-1))
    assert_opens(library(grey[:, :, None]), np.stack([grey] * 3, axis=-1))
    alpha = np.concatenate([PIXELS, PIXELS[:, :, :1]], axis=-1)
    assert_opens(library(alpha), PIXELS)
    assert_opens(library(PIXELS)[::2, ::-1], PIXELS[::2, ::-1])


def test_anything_with_an_array():
    class Tensor:
        def __array__(self, dtype=None, copy=None):
            return PIXELS

    assert_opens(Tensor(), PIXELS)


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_files_stand_upright(kind, orientation):
    data = encode(Image.fromarray(PIXELS), kind, exif=exif(orientation))
    with Image.open(io.BytesIO(data)) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    assert expected.shape == (PIXELS.shape if orientation < 5 else UPRIGHT.shape)
    assert_opens(data, expected)


def test_orientation_in_other_places():
    def png(key, text):
        chunks = PngInfo()
        add = chunks.add_itxt if key.startswith("XML") else chunks.add_text
        add(key, text)
        return encode(Image.fromarray(PIXELS), pnginfo=chunks)

    for text in ('<x tiff:Orientation="6"/>', "<tiff:Orientation>6</tiff:Orientation>"):
        assert_opens(png("XML:com.adobe.xmp", text), UPRIGHT)
    block = exif(TURNED).tobytes()
    assert_opens(png("Raw profile type exif", f"\nexif\n{len(block):8}\n{block.hex()}\n"), UPRIGHT)
    assert_opens(png("Raw profile type exif", "\nexif\n3\nno hex\n"), PIXELS)


def test_damaged_metadata_means_upright_and_no_warning():
    """Pillow warns about a tag whose value lies outside; warnings are errors in these tests."""
    entries = struct.pack("<HHII", 0x010E, 2, 4000, 9000) + struct.pack(
        "<HHIHH", 0x0112, 3, 1, 6, 0
    )
    block = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)
    data = encode(Image.new("RGB", (8, 4)), "JPEG", exif=block)
    # Without the resolution of the JPEG header Pillow looks for one in the damaged block.
    data = data.replace(b"JFIF\0\1\1\1\0\1", b"JFIF\0\1\1\0\0\1").replace(b"JFIF\0", b"JFIX\0")
    with pytest.warns(UserWarning, match="."), Image.open(io.BytesIO(data)) as picture:
        picture.getexif()
    assert open_image(data).size == (4, 8)
    assert exif_orientation(block[:-14]) is None  # cut off within the entry
    assert exif_orientation(b"nonsense") is None
    assert exif_orientation(b"") is None


@pytest.mark.parametrize(("order", "kind"), [("<", 3), (">", 3), (">", 4), ("<", 1)])
def test_numbers_of_any_width_and_order(order, kind):
    value = struct.pack(order + {1: "Bxxx", 3: "Hxx", 4: "I"}[kind], 8)
    header = b"II*\0" if order == "<" else b"MM\0*"
    block = header + struct.pack(order + "IHHHI", 8, 1, 0x0112, kind, 1) + value
    assert exif_orientation(block) == 8
    assert exif_orientation(b"Exif\0\0Exif\0\0" + block) == 8


# Conversion


def test_plain_conversion_to_rgb():
    picture = Image.fromarray(PIXELS)
    palette = picture.quantize(17)
    pictures = {
        "grey": picture.convert("L"),
        "grey and alpha": picture.convert("LA"),
        "alpha": Image.merge("RGBA", [*picture.split(), picture.getchannel(0)]),
        "one bit": picture.convert("1"),
        "palette": palette,
        "16 bits": Image.fromarray(PIXELS[:, :, 0].astype(np.uint16) * 3),
        "CMYK": picture.convert("CMYK"),
    }
    for name, one in pictures.items():
        expected = np.asarray(one.convert("RGB"))
        assert_opens(one, expected)
        kind = "TIFF" if name == "CMYK" else "PNG"
        assert_opens(encode(one, kind), expected)
    np.testing.assert_array_equal(np.asarray(open_image(pictures["alpha"])), PIXELS)


def test_transparency_does_not_warn():
    """Pillow warns about a transparent palette; warnings are errors in these tests."""
    data = encode(Image.fromarray(PIXELS).quantize(17), transparency=bytes(range(17)))
    with Image.open(io.BytesIO(data)) as picture:
        with pytest.warns(UserWarning, match="Transparency"):
            expected = np.asarray(picture.convert("RGB"))
        assert_opens(picture, expected)
        assert "transparency" in picture.info
    assert_opens(data, expected)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_first_of_several_frames(kind):
    frames = [Image.new("RGB", (16, 8), colour) for colour in ("white", "black", "white")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.n_frames >= 2
    assert (np.asarray(open_image(data)) >= 254).all()


# Errors


def error_line(source):
    with pytest.raises(ImageError) as caught:
        open_image(source)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 300
    return line


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


def test_files_that_are_no_pictures(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("no picture")
    assert error_line(path) == f"'{path}' is no picture of a format that Pillow reads"
    assert error_line(b"") == (
        "the picture given as 0 bytes is no picture of a format that Pillow reads"
    )
    assert "is no picture" in error_line(io.BytesIO(b"\x00" * 100))
    assert "is no picture" in error_line(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("part", [0.05, 0.3, 0.6, 0.9])
def test_truncated_files(kind, part):
    noise = np.random.default_rng(2).integers(0, 256, (90, 140, 3), np.uint8)
    data = encode(Image.fromarray(noise), kind)
    line = error_line(data[: int(len(data) * part)])
    assert "cannot be decoded" in line or "is no picture" in line


def test_damaged_files():
    data = bytearray(PNG)
    data[60:70] = bytes(10)
    assert "cannot be decoded" in error_line(bytes(data))


@pytest.mark.parametrize("pixels", [126, 250, 251, 10_000])
def test_more_pixels_than_pillow_takes_without_a_warning(pixels, monkeypatch):
    """PIXELS has 126. Pillow warns above its limit and raises above twice the limit."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 125)
    assert "too large" in error_line(png_of_size(1, pixels))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 126)
    assert_opens(PNG, PIXELS)


def test_extreme_sizes():
    assert error_line(png_of_size(2**31 - 1, 2**31 - 1)).startswith("the picture given as")
    assert "too large: 30000 x 3000 pixels; at most" in error_line(png_of_size(30_000, 3_000))


def test_data_addresses_that_are_none():
    assert error_line("data:image/png;base64") == (
        "'data:image/png;base64' is no data address: there is no comma in it"
    )
    assert "is no valid base64" in error_line("data:;base64,a")
    line = error_line("data:;base64," + "!" * 100_000)
    assert "… (100013 letters) is no valid base64" in line
    assert "is no picture" in error_line("data:,hello")


def test_file_objects_that_are_no_pictures(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(PNG)
    with path.open(encoding="latin-1") as stream:
        assert error_line(stream) == f"'{path}' is open as text; open it in binary mode"
    assert "is open as text" in error_line(io.StringIO("a"))
    with path.open("rb") as stream:
        pass
    assert error_line(stream) == f"'{path}' cannot be read: seek of closed file"


def test_pillow_pictures_that_cannot_be_decoded():
    with Image.open(io.BytesIO(PNG[:-40])) as picture:
        assert error_line(picture).startswith("the Pillow picture cannot be decoded: ")
    picture = Image.fromarray(PIXELS)
    picture.close()
    assert error_line(picture).startswith("the Pillow picture cannot be decoded: ")


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
def test_arrays_that_are_no_pictures(array, line):
    assert line in error_line(array)


@pytest.mark.parametrize("source", [None, 3, ["a.png"], {}, object()])
def test_things_that_are_no_pictures(source):
    line = error_line(source)
    assert line.startswith(f"a {type(source).__name__} is no picture; expected a path, an address")


def test_web_addresses_that_fail(server, monkeypatch):
    assert error_line(server + "/missing").endswith("cannot be downloaded: HTTP 404 Not Found")
    assert error_line(server + "/text").endswith("is no picture of a format that Pillow reads")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        assert "Connection refused" in error_line(f"http://127.0.0.1:{port}/a.png")
    for address in ("http://", "http://[", "http://a b/", "https://exämple.invalid:x/"):
        assert "cannot be downloaded" in error_line(address)
    monkeypatch.setattr(download, "MOST_BYTES", len(TURNED_PNG) - 1)
    assert error_line(server + "/picture").endswith("is larger than 0 MiB")
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    assert "timed out" in error_line(server + "/slow")
    assert "took longer than" in error_line(server + "/drip")


# Nothing of the process changes


def test_threads_and_settings_of_the_process(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(TURNED_PNG)
    transparent = encode(Image.fromarray(PIXELS).quantize(17), transparency=bytes(range(17)))
    before = list(warnings.filters), Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    changes = []
    done = threading.Event()

    def watch():
        while not done.is_set():
            if list(warnings.filters) != before[0]:
                changes.append(1)
            time.sleep(0)

    with ThreadPoolExecutor(5) as pool:
        pool.submit(watch)
        results = list(pool.map(open_image, [path, TURNED_PNG, transparent, PNG] * 20))
        done.set()
    assert not changes
    for turned, also_turned, _, plain in zip(*[iter(results)] * 4, strict=True):
        np.testing.assert_array_equal(np.asarray(turned), UPRIGHT)
        np.testing.assert_array_equal(np.asarray(also_turned), UPRIGHT)
        np.testing.assert_array_equal(np.asarray(plain), PIXELS)
    after = list(warnings.filters), Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    assert after == before
