"""What people drop on it: photos of phones, scans, PDF pages, animated files, damaged."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from jvlm_mlx.processing.documents import expand
from tests.fuzz.mutators import mutate_bytes
from tests.fuzz.workplace import GOLDEN, Workplace

COLORS = ("red", "blue", "lime")
PAGES = ("", "", "#1", "#2", "#2-3", "#9", "#0", "#1-99999")
TIFF_COMPRESSIONS = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")


class DocumentTargets(Workplace):
    """Files of several pages or frames, and of more than 8 bits."""

    def fuzz_document(self, chance):
        if not hasattr(self, "documents"):
            self.documents = documents()
        name = chance.choice(sorted(self.documents))
        file = self.folder / f"document.{name.partition(' ')[0].lower()}"
        file.write_bytes(_damaged(chance, self.documents[name]))
        source = f"{file}{chance.choice(PAGES)}"
        if chance.random() < 0.2:
            source = file.read_bytes()
        for page in expand(source, max_pixels=2**14):
            self.processor.image_processor(page, max_crops=1)


def documents():
    """Return the bytes of whole files by name; the first word is what they end in."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 36, 3), np.uint8)
    gray = noise[:, :, 0].astype(np.uint16) * 257
    frames = [Image.new("RGB", (30, 20), color) for color in COLORS]
    films = {
        f"{name} film": _encoded(frames[0], name, save_all=True, append_images=frames[1:])
        for name in ("GIF", "WEBP", "PNG", "TIFF", "AVIF", "PDF")
    }
    scans = {
        f"TIFF {name}": _encoded(Image.fromarray(noise), "TIFF", compression=name)
        for name in TIFF_COMPRESSIONS
    }
    return {
        **films,
        **scans,
        "HEIC": (GOLDEN / "images" / "turned.heic").read_bytes(),
        "AVIF": _encoded(Image.fromarray(noise), "AVIF"),
        "TIFF fax": _encoded(Image.fromarray(noise).convert("1"), "TIFF", compression="group4"),
        "TIFF gray of 16 bits": _encoded(Image.fromarray(gray), "TIFF"),
        "TIFF floats": _encoded(Image.fromarray(gray.astype(np.float32)), "TIFF"),
        "TIFF integers": _encoded(Image.fromarray(gray.astype(np.int32)), "TIFF"),
        "PNG gray of 16 bits": _encoded(Image.fromarray(gray), "PNG"),
        "PNG color of 16 bits": _png_of_16_bits(noise),
        "PDF text": _pdf_of_text(),
    }


def _encoded(image, name, **options):
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def _damaged(chance, data):
    """Cut it off or change it, near its start rather often."""
    kind = chance.randrange(4)
    if kind == 0:
        return data[: chance.randrange(len(data))]
    if kind == 1:
        start = chance.randrange(1, 400)
        return mutate_bytes(chance, data[:start]) + data[start:]
    return mutate_bytes(chance, data)


def _png_of_16_bits(pixels):
    """Pillow writes none of three channels."""
    height, width, _ = pixels.shape
    lines = b"".join(b"\0" + (line.astype(">u2") * 257).tobytes() for line in pixels)

    def chunk(name, data):
        crc = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    )


def _pdf_of_text():
    """Two pages with text, lines and a form that is drawn twice."""
    drawing = zlib.compress(b"BT /F1 24 Tf 20 40 Td (Hello) Tj ET 10 10 m 90 90 l S /X Do /X Do")
    form = b"0.5 g 5 5 20 20 re f"
    objects = (
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Count 2/Kids[3 0 R 3 0 R]>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 100]/Contents 4 0 R/Resources"
        b"<</Font<</F1<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>>>/XObject<</X 5 0 R>>>>>>",
        b"<</Filter/FlateDecode/Length %d>>stream\n%s\nendstream" % (len(drawing), drawing),
        b"<</Type/XObject/Subtype/Form/BBox[0 0 99 99]/Length %d>>stream\n%s\nendstream"
        % (len(form), form),
    )
    data, places = b"%PDF-1.5\n", []
    for number, one in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj%s\nendobj\n" % (number, one)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    count = len(objects) + 1
    table = b"xref\n0 %d\n0000000000 65535 f \n" % count + table
    end = b"trailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % (count, len(data))
    return data + table + end
