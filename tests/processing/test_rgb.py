"""Gray values of more than 8 bits, floats, and ink on a transparent ground."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from jvlm_mlx.processing.image_io import open_image
from tests.helpers.image_files import PIXELS, encode

GRAY = PIXELS[:, :, 0].copy()
GRAY[0, :2] = 0, 255  # black and white are among them


def gray_of(source):
    found = np.asarray(open_image(source))
    assert (found == found[:, :, :1]).all()
    return found[:, :, 0]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (GRAY.astype(np.uint16) * 257, "PNG"),
        (GRAY.astype(np.uint16) * 257, "TIFF"),
        (GRAY.astype(">u2") * 257, "TIFF"),
        (GRAY.astype(np.uint16) * 16 + 15, "PNG"),  # 12 bits
        (GRAY.astype(np.uint16), "PNG"),  # 8 bits
        (GRAY.astype(np.int32) * 257, "TIFF"),
        (GRAY.astype(np.int32) * 70_000, "TIFF"),
        (GRAY.astype(np.int32) * 10 - 1000, "TIFF"),
        (GRAY.astype(np.float32) / 255, "TIFF"),
        (GRAY.astype(np.float32), "TIFF"),
        (GRAY.astype(np.float32) * 257, "TIFF"),
        (GRAY.astype(np.float32) * 3e5 - 7e6, "TIFF"),
    ],
)
def test_values_of_more_than_8_bits_are_scaled(values, kind):
    image = Image.fromarray(values.astype(values.dtype.newbyteorder("="), copy=False))
    if values.dtype == ">u2":
        image = Image.frombytes("I;16B", image.size, values.tobytes())
    for source in (image, encode(image, kind)):
        difference = gray_of(source).astype(int) - GRAY
        assert np.abs(difference).max() <= 1


def test_what_is_no_number_is_black():
    values = GRAY.astype(np.float32) / 255
    values[3, :3] = np.nan, np.inf, -np.inf
    found = gray_of(Image.fromarray(values))
    assert found[3, :3].tolist() == [0, 0, 0]
    assert np.abs(found[4:].astype(int) - GRAY[4:]).max() <= 1
    assert (gray_of(Image.fromarray(np.full((3, 4), np.nan, np.float32))) == 0).all()


def test_a_large_16_bit_image_is_scaled_by_its_highest_value():
    values = np.zeros((1500, 3), np.uint16)
    values[1400] = 65535
    values[3] = 4000  # alone, it would be taken for 12 bits
    found = gray_of(encode(Image.fromarray(values)))
    assert found[1400, 0] == 255
    assert found[3, 0] == 16


def ink(color, mode="RGBA"):
    """Text of one color on a ground that is transparent, and of the same color."""
    image = Image.new("RGBA", (60, 30), (*color, 0))
    ImageDraw.Draw(image).text((5, 5), "text", fill=(*color, 255))
    return image if mode == "RGBA" else image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGBA", None), ("LA", None), ("PA", None), ("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "WEBP")],
)
@pytest.mark.parametrize(("color", "ground"), [((0, 0, 0), 255), ((250, 250, 250), 0)])
def test_ink_on_a_transparent_ground_can_be_seen(mode, kind, color, ground, caplog):
    image = ink(color, mode)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    found = gray_of(image if kind is None else encode(image, kind, **options))
    assert found[0, 0] == ground
    assert np.abs(found.astype(int) - color[0]).min() <= 5  # its edges are smoothed
    assert "has one color and transparency; it is laid on" in caplog.text


def test_a_palette_with_ink_on_a_transparent_ground_can_be_seen():
    image = Image.new("P", (20, 10), 0)
    image.putpalette([0, 0, 0] * 2)
    image.paste(1, (5, 2, 15, 8))
    data = encode(image, transparency=bytes([0, 255]))
    found = gray_of(data)
    assert found[0, 0] == 255
    assert found[5, 10] == 0


def test_alpha_of_other_images_is_dropped(caplog):
    """As the reference does it: what is under a transparent ground counts."""
    pixels = np.dstack([PIXELS, PIXELS[:, :, 0]])
    np.testing.assert_array_equal(np.asarray(open_image(Image.fromarray(pixels))), PIXELS)
    opaque = Image.new("RGBA", (4, 4), (9, 9, 9, 77))
    assert (np.asarray(open_image(opaque)) == 9).all()
    assert not caplog.records
