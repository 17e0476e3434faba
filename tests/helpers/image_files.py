"""PromptImage files made for a test, and what opening them gives."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from jvlm_mlx.errors import ImageError
from jvlm_mlx.processing.image_io import open_image

PIXELS = np.random.default_rng(1).integers(0, 256, (9, 14, 3), np.uint8)
TURNED = 6


def encode(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def exif(orientation):
    block = Image.Exif()
    block[ExifTags.Base.Orientation] = orientation
    return block


PNG = encode(Image.fromarray(PIXELS))
TURNED_PNG = encode(Image.fromarray(PIXELS), exif=exif(TURNED))
UPRIGHT = np.rot90(PIXELS, -1)


def assert_opens(source, expected):
    image = open_image(source)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), expected)


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of_size(width, height):
    """The first bytes of a PNG that says it is this large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0"))


def error_line(source):
    with pytest.raises(ImageError) as caught:
        open_image(source)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 300
    return line
