"""Damaged images of every format: an image or one line of an error, and never a warning.

A longer run of this kind is a matter of patience: other seeds, more rounds.
"""

import random

import numpy as np
import pytest
from PIL import Image

from jvlm_mlx.errors import ImageError
from jvlm_mlx.processing.documents import expand
from jvlm_mlx.processing.image_processor import ImageProcessor
from tests.helpers.image_files import encode, exif
from tests.helpers.image_goldens import GOLDEN, TINY, TINY_IDS

NOISE = np.random.default_rng(5).integers(0, 256, (24, 36, 3), np.uint8)
IMAGE = Image.fromarray(NOISE)
FRAMES = [Image.new("RGB", (30, 20), color) for color in ("red", "blue", "lime")]
ROUNDS = 12

FILES = {
    **{kind: encode(IMAGE, kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM")},
    **{
        f"{kind} film": encode(FRAMES[0], kind, save_all=True, append_images=FRAMES[1:])
        for kind in ("GIF", "WEBP", "PNG", "TIFF")
    },
    "AVIF": encode(IMAGE, "AVIF"),
    "JPEG 2000": encode(IMAGE, "JPEG2000"),
    "ICO": encode(IMAGE.resize((32, 32)), "ICO"),
    "ICO of BMP": encode(IMAGE.resize((32, 32)), "ICO", bitmap_format="bmp"),
    "HEIC": (GOLDEN / "images" / "turned.heic").read_bytes(),
    "progressive JPEG": encode(IMAGE, "JPEG", progressive=True, exif=exif(6)),
    "TIFF of LZW": encode(IMAGE, "TIFF", compression="tiff_lzw", exif=exif(6)),
    "TIFF of floats": encode(Image.fromarray(NOISE[:, :, 0].astype(np.float32)), "TIFF"),
    "PNG of 16 bits": encode(Image.fromarray(NOISE[:, :, 0].astype(np.uint16) * 257)),
    "PNG of a palette": encode(IMAGE.quantize(17), transparency=bytes(range(17))),
}


def damage(data, rng):
    data = bytearray(data)
    place, length = rng.randrange(len(data)), rng.randrange(1, 60)
    match rng.randrange(5):
        case 0:
            del data[place:]
        case 1:
            del data[place : place + length]
        case 2:
            data[place:place] = data[place : place + length] * rng.randrange(1, 4)
        case 3:
            filler = rng.choice([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\0\0\x40\0"])
            data[place : place + 4] = filler
        case _:
            for _ in range(rng.randrange(1, 8)):
                data[rng.randrange(min(200, len(data)))] ^= 1 << rng.randrange(8)
    return bytes(data)


@pytest.mark.parametrize("kind", FILES)
def test_damaged_images(kind, tmp_path):
    rng = random.Random(kind)
    processor = ImageProcessor(TINY, TINY_IDS)
    path = tmp_path / "image"
    lines = []
    for _ in range(ROUNDS):
        path.write_bytes(damage(FILES[kind], rng))
        for source in (path, f"{path}#2-3"):
            try:
                for image in expand(source):
                    processor.open(image).load()
            except ImageError as error:
                lines.append(str(error))
    assert lines
    assert not [line for line in lines if "\n" in line or len(line) > 400]
