import contextlib
import io
import os
import struct
import subprocess
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import EpsImagePlugin, ExifTags, Image, ImageFile, ImageOps
from PIL.PngImagePlugin import PngInfo

from jvlm_mlx.errors import ImageError
from jvlm_mlx.processing import image_decoding
from jvlm_mlx.processing.image_decoding import exif_orientation
from jvlm_mlx.processing.image_io import open_image, read_image
from jvlm_mlx.processing.image_processor import ImageProcessor
from jvlm_mlx.processing.tiling import plan_layout
from tests.helpers.image_files import (
    PIXELS,
    PNG,
    TURNED,
    TURNED_PNG,
    UPRIGHT,
    assert_opens,
    chunk,
    encode,
    error_line,
    exif,
    png_of_size,
)
from tests.helpers.image_goldens import TINY, TINY_IDS

# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_files_stand_upright(kind, orientation):
    data = encode(Image.fromarray(PIXELS), kind, exif=exif(orientation))
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
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


def test_orientation_behind_the_pixels():
    """PNG allows it; the size must be known before it is decoded."""
    block = exif(TURNED).tobytes().removeprefix(b"Exif\0\0")
    data = PNG[:-12] + chunk(b"eXIf", block) + PNG[-12:]
    assert_opens(data, UPRIGHT)
    assert read_image(data).size == (9, 14)
    assert ImageProcessor(TINY, TINY_IDS)(data).layout == plan_layout(14, 9, TINY)
    assert "cannot be decoded" in error_line(data[:60] + bytes(8) + data[68:])


@pytest.mark.parametrize(("tag", "expected"), [(1, PIXELS), (TURNED, UPRIGHT)])
def test_a_tiff_is_turned_once(tag, expected):
    xmp = b'<x tiff:Orientation="6"/>'
    info = {ExifTags.Base.Orientation: tag, ExifTags.Base.XMLPacket: xmp}
    assert_opens(encode(Image.fromarray(PIXELS), "TIFF", tiffinfo=info), expected)


def test_damaged_metadata_means_upright_and_no_warning():
    """Pillow warns about a tag whose value lies outside; warnings are errors in these tests."""
    entries = struct.pack("<HHII", 0x010E, 2, 4000, 9000) + struct.pack(
        "<HHIHH", 0x0112, 3, 1, 6, 0
    )
    block = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)
    data = encode(Image.new("RGB", (8, 4)), "JPEG", exif=block)
    # Without the resolution of the JPEG header Pillow looks for one in the damaged block.
    data = data.replace(b"JFIF\0\1\1\1\0\1", b"JFIF\0\1\1\0\0\1").replace(b"JFIF\0", b"JFIX\0")
    with pytest.warns(UserWarning, match="."), Image.open(io.BytesIO(data)) as image:
        image.getexif()
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
    image = Image.fromarray(PIXELS)
    palette = image.quantize(17)
    images = {
        "gray": image.convert("L"),
        "gray and alpha": image.convert("LA"),
        "alpha": Image.merge("RGBA", [*image.split(), image.getchannel(0)]),
        "one bit": image.convert("1"),
        "palette": palette,
        "CMYK": image.convert("CMYK"),
    }
    for name, one in images.items():
        expected = np.asarray(one.convert("RGB"))
        assert_opens(one, expected)
        kind = "TIFF" if name == "CMYK" else "PNG"
        assert_opens(encode(one, kind), expected)
    np.testing.assert_array_equal(np.asarray(open_image(images["alpha"])), PIXELS)


def test_transparency_does_not_warn():
    """Pillow warns about a transparent palette; warnings are errors in these tests."""
    data = encode(Image.fromarray(PIXELS).quantize(17), transparency=bytes(range(17)))
    with Image.open(io.BytesIO(data)) as image:
        with pytest.warns(UserWarning, match="Transparency"):
            expected = np.asarray(image.convert("RGB"))
        assert_opens(image, expected)
        assert "transparency" in image.info
    assert_opens(data, expected)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_of_several_frames(kind):
    frames = [Image.new("RGB", (16, 8), color) for color in ("white", "black", "white")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames >= 2
    assert (np.asarray(open_image(data)) >= 254).all()


def test_first_of_several_jpegs_in_a_file():
    """As cameras append depth maps, previews and short films."""
    data = b"".join(encode(Image.new("RGB", (16, 8), name), "JPEG") for name in ("white", "black"))
    assert (np.asarray(open_image(data)) >= 254).all()


# Formats


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}), ("WEBP", {"lossless": True}), ("GIF", {}), ("TIFF", {}), ("BMP", {}),
        ("TIFF", {"compression": "tiff_lzw"}), ("AVIF", {}), ("PPM", {}), ("ICO", {}),
        ("ICO", {"bitmap_format": "bmp"}), ("JPEG2000", {}), ("JPEG", {}),
        ("JPEG", {"progressive": True}), ("MPO", {"save_all": True}),
    ],
)  # fmt: skip
def test_formats_that_are_opened(kind, options):
    size = (16, 16)
    data = encode(Image.fromarray(PIXELS).resize(size), kind, **options)
    with Image.open(io.BytesIO(data)) as image:
        assert_opens(data, np.asarray(image.convert("RGB")))
    assert read_image(data).size == size


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "EPS"),
        (b"\xc5\xd0\xd3\xc6" + bytes(28), "EPS"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><svg/>", "XML or SVG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\n<!DOCTYPE html><html></html>", "a web page"),
        (b'{"error": 404}', "JSON"),
        (b"PK\x03\x04" + bytes(30), "a ZIP archive or an office document"),
        (b"8BPS" + bytes(30), "a Photoshop file"),
        (b"\0\0\0\x18ftypisom" + bytes(30), "a film"),
        (b"SIMPLE  =                    T", "FITS"),
        (b"BUFR" + bytes(30), "BUFR"),
    ],
)
def test_other_formats_are_refused_by_name(start, name):
    line = error_line(start)
    assert f"bytes is {name}, and no image of a format that is opened: JPEG, PNG" in line


def test_a_raw_photo_is_not_taken_for_its_preview(tmp_path):
    """DNG, NEF and ARW are TIFFs whose first image is a few pixels of the real one."""
    preview = Image.new("RGB", (16, 12), "gray")
    raw = encode(preview, "TIFF", tiffinfo={254: 1, 330: 8})
    line = error_line(raw)
    assert "is a raw photo" in line
    assert line.endswith("convert it to JPEG: sips -s format jpeg")
    for tags in ({254: 1}, {254: 0, 330: 8}, {}):  # scans
        assert open_image(encode(preview, "TIFF", tiffinfo=tags)).size == (16, 12)


def test_avif_without_its_decoder_says_what_to_do(monkeypatch):
    data = encode(Image.new("RGB", (16, 12)), "AVIF")
    monkeypatch.setitem(Image.OPEN, "AVIF", (None, lambda _: "AVIF support is not installed"))
    assert error_line(data).endswith("is AVIF; this Pillow cannot open it: upgrade pillow to 11.3")


def test_no_program_is_started(monkeypatch):
    """Pillow runs Ghostscript on EPS, whatever the file is called."""

    def refuse(*arguments, **keywords):
        pytest.fail("a process is started")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
    monkeypatch.setattr(os, "system", refuse)
    data = encode(Image.fromarray(PIXELS), "EPS")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    with Image.open(io.BytesIO(data)) as image, pytest.raises(pytest.fail.Exception):
        image.load()
    assert "is EPS, and no image" in error_line(data)


# Damaged and oversized files


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("part", [0.05, 0.3, 0.6, 0.9])
def test_truncated_files(kind, part):
    noise = np.random.default_rng(2).integers(0, 256, (90, 140, 3), np.uint8)
    data = encode(Image.fromarray(noise), kind)
    line = error_line(data[: int(len(data) * part)])
    assert "cannot be decoded" in line or "is no image" in line


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
    assert error_line(png_of_size(2**31 - 1, 2**31 - 1)).startswith("the image given as")
    assert "too large: 30000 x 3000 pixels; at most" in error_line(png_of_size(30_000, 3_000))


def test_damaged_tiff_does_not_warn():
    """Pillow warns about each of these; warnings are errors in these tests."""
    data = encode(Image.fromarray(PIXELS), "TIFF", tiffinfo={270: "x" * 40})
    place = data.index(struct.pack("<HHI", 270, 2, 41))
    far = data[: place + 8] + struct.pack("<I", 2**30) + data[place + 12 :]
    long = data[: place + 4] + struct.pack("<I", 2**30) + data[place + 8 :]
    (directory,) = struct.unpack_from("<I", data, 4)
    width = data.index(struct.pack("<HH", 256, 3 if b"\x00\x01\x03\x00" in data else 4), directory)
    twice = data[: width + 4] + struct.pack("<I", 2) + data[width + 8 :]
    for damaged in (far, long, twice):
        with (
            pytest.warns(UserWarning, match="."),
            contextlib.suppress(Exception),
            Image.open(io.BytesIO(damaged)) as image,
        ):
            image.load()
        with contextlib.suppress(ImageError):
            open_image(damaged)


def test_damaged_apng_does_not_warn():
    twice = chunk(b"acTL", struct.pack(">II", 2, 0)) * 2
    data = PNG[:33] + twice + PNG[33:]
    with pytest.warns(UserWarning, match="Invalid APNG"), Image.open(io.BytesIO(data)) as image:
        image.load()
    assert_opens(data, PIXELS)


def test_an_icon_larger_than_it_says_does_not_warn():
    png = encode(Image.fromarray(PIXELS).resize((300, 200)))
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(png), 22)
    data = struct.pack("<HHH", 0, 1, 1) + entry + png
    with pytest.warns(UserWarning, match="expected size"), Image.open(io.BytesIO(data)) as image:
        image.load()
    assert read_image(data).size == open_image(data).size == (300, 200)
    png = png_of_size(30_000, 3_000)
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(png), 22)
    assert "too large: 30000 x 3000" in error_line(struct.pack("<HHH", 0, 1, 1) + entry + png)


def test_sizes_are_read_without_decoding():
    for kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        data = encode(Image.fromarray(PIXELS), kind, exif=exif(TURNED))
        start = data if kind == "WEBP" else data[:-60]
        assert read_image(start).size == (9, 14)


def test_a_plain_jpeg_above_the_limit_is_decoded_at_half_its_size(monkeypatch):
    image = Image.linear_gradient("L").resize((120, 80)).convert("RGB")
    data = encode(image, "JPEG", quality=95)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 120 * 80)
    assert open_image(data).size == (120, 80)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 120 * 80 // 4)
    assert read_image(data).size == open_image(data).size == (60, 40)
    found = np.asarray(open_image(data), np.float64)
    assert np.abs(found - np.asarray(image.resize((60, 40)), np.float64)).mean() < 3
    assert "too large: 120 x 80" in error_line(encode(image, "JPEG", progressive=True))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 120 * 80 // 4 - 1)
    assert "too large: 120 x 80" in error_line(data)


def test_progressive_scans(monkeypatch):
    image = Image.fromarray(PIXELS).resize((64, 64))
    data = encode(image, "JPEG", progressive=True)
    scan = data.index(b"\xff\xda")
    many = data[:scan] + data[scan:-2] * 60 + data[-2:]
    assert open_image(data).size == (64, 64)
    assert "progressive scans of 64 x 64 pixels, too many" in error_line(many)
    assert read_image(many).size == (64, 64)
    monkeypatch.setattr(image_decoding, "MAX_SCANNED_PIXELS", 64 * 64 * 5)
    assert "progressive scans" in error_line(data)


def test_jpeg_2000_of_many_layers_or_blocks(monkeypatch):
    image = Image.fromarray(PIXELS).resize((64, 64))
    data = bytearray(encode(image, "JPEG2000", quality_layers=[40, 20, 0]))
    place = data.index(b"\xff\x52")
    assert struct.unpack_from(">H", data, place + 6) == (3,)
    assert open_image(bytes(data)).size == (64, 64)
    struct.pack_into(">H", data, place + 6, 65535)
    monkeypatch.setattr(image_decoding, "MAX_BLOCKS", 2**20)
    assert "blocks, too many to decode" in error_line(bytes(data))
    tiny = encode(image, "JPEG2000", codeblock_size=(4, 4))
    assert open_image(tiny).size == (64, 64)
    monkeypatch.setattr(image_decoding, "MAX_BLOCKS", 500)
    assert "blocks, too many to decode" in error_line(tiny)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 * 4 - 1)
    assert "too large: 64 x 64 pixels; at most 4095" in error_line(tiny)


# Nothing of the process changes


def test_threads_and_settings_of_the_process(tmp_path):
    path = tmp_path / "image.png"
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
