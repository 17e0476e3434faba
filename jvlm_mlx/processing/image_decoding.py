"""From the bytes of an image file to its size, and to an upright RGB image.

How an image is to be turned is read here: Pillow's own reading of this metadata warns about every
damaged tag of a file. What cannot be read means upright.
"""

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

from PIL import ExifTags, Image

from ..errors import ImageError, ImageTooLargeError
from ..files import reason
from .image_formats import FORMAT_NAMES, identify, what_it_is
from .rgb import to_rgb

MAX_SCANS = 100
"""Passes of a progressive JPEG; encoders make about ten."""
MAX_SCANNED_PIXELS = 2**30
"""Pixels times passes: about ten seconds."""
MAX_BLOCKS = 2**21
"""Layers times components times blocks of a JPEG 2000 image, which its decoder keeps a list of."""
MAX_REDUCED_PIXELS = 4
"""A plain JPEG of up to this many times the limit on pixels is decoded at half its size."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings an image with this orientation (EXIF tag 274) upright."""
_SIDEWAYS = (5, 6, 7, 8)
"""Orientations that exchange width and height."""
_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_NEW_SUBFILE_TYPE, _SUB_IFDS = 254, 330
"""Tags of TIFF; the first bit of the former says that an image is reduced from another."""
_NUMBER_KINDS = {1: "B", 3: "H", 4: "I"}


def image_size(
    stream: IO[bytes], name: str, max_pixels: int | None = None, frame: int = 1
) -> tuple[int, int]:
    """Return width and height of the image in `stream`, upright; its pixels are not decoded.

    Args:
        stream: at its start.
        name: for messages.
        max_pixels: most pixels; None: `PIL.Image.MAX_IMAGE_PIXELS`.
        frame: which of several, counted from 1.

    Raises:
        ImageError: it is of no format that is opened, damaged, or has too many pixels.
    """
    image = _open(stream, name, max_pixels, frame)
    if image.format == "PNG" and _has_late_metadata(stream):
        with decoding(name):
            image.load()
    width, height = image.size
    # Pillow has exchanged them already as TIFF's own tag says, but not as XMP says.
    exchanged = ExifTags.Base.Orientation in getattr(image, "tag_v2", ())
    sideways = not exchanged and orientation(image) in _SIDEWAYS
    return (height, width) if sideways else (width, height)


def _has_late_metadata(stream: IO[bytes]) -> bool:
    """Whether a PNG says behind its pixels how it is to be turned, which only decoding finds."""
    position = stream.tell()
    stream.seek(8)
    seen_pixels = found = False
    while not found and len(header := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        found = seen_pixels and kind in (b"eXIf", b"iTXt", b"tEXt", b"zTXt")
        seen_pixels = seen_pixels or kind == b"IDAT"
        stream.seek(length + 4, 1)
    stream.seek(position)
    return found


def count_frames(stream: IO[bytes], name: str, max_pixels: int | None = None) -> int:
    """Return how many frames the image in `stream` has; errors as `image_size`."""
    image = _open(stream, name, max_pixels)
    with decoding(name):
        return getattr(image, "n_frames", 1)


def decode(
    stream: IO[bytes], name: str, max_pixels: int | None = None, frame: int = 1
) -> Image.Image:
    """Return a frame of the image in `stream`, upright and in RGB; as `image_size`."""
    image = _open(stream, name, max_pixels, frame)
    _check_work(image, stream, name)
    with decoding(name):
        image.load()
        turn = _TURNS.get(orientation(image) or 1)
        return to_rgb(image if turn is None else image.transpose(turn), name)


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """Raise an ImageError in place of whatever a damaged file makes a decoder trip over."""
    try:
        yield
    except Exception as error:
        raise ImageError(f"{name} cannot be decoded: {reason(error)}") from error


def _open(stream: IO[bytes], name: str, max_pixels: int | None, frame: int = 1) -> Image.Image:
    with decoding(name):
        image = identify(stream)
        if image is None:
            stream.seek(0)
            found = what_it_is(stream.read(64))
    if image is None:
        if found == "HEIC":
            raise ImageError(
                f"{name} is HEIC; install jvlm-mlx[heic] to open it, or convert it to JPEG:"
                " sips -s format jpeg"
            )
        if found == "AVIF":
            raise ImageError(f"{name} is AVIF; this Pillow cannot open it: upgrade pillow to 11.3")
        if found == "PDF":
            raise ImageError(f"{name} is PDF; give its bytes, or its path if that ends in .pdf")
        what = f"{found}, and no image" if found else "no image"
        raise ImageError(f"{name} is {what} of a format that is opened: {FORMAT_NAMES}")
    if _is_raw_photo(image):
        raise ImageError(
            f"{name} is a raw photo, of which only a small preview would be seen; convert it to"
            " JPEG: sips -s format jpeg"
        )
    limit = Image.MAX_IMAGE_PIXELS if max_pixels is None else max_pixels
    _check_pixels(image, name, limit)
    if frame != 1:
        _seek(image, name, frame)
        _check_pixels(image, name, limit)
    return image


def _is_raw_photo(image: Image.Image) -> bool:
    """Whether the first image of a TIFF is a preview of one inside: DNG, NEF, ARW and the like."""
    tags = getattr(image, "tag_v2", {})
    kind = tags.get(_NEW_SUBFILE_TYPE, 0)
    return isinstance(kind, int) and kind & 1 == 1 and _SUB_IFDS in tags


def _seek(image: Image.Image, name: str, frame: int) -> None:
    """Go to a frame; all before it may have to be decoded.

    Raises:
        ImageError: there is no such frame, or it takes too long to come to.
    """
    if image.format != "TIFF" and frame * image.width * image.height > MAX_SCANNED_PIXELS:
        raise ImageError(
            f"frame {frame} of {name} takes too long to come to: {frame} frames of"
            f" {image.width} x {image.height} pixels"
        )
    with decoding(name), suppress(EOFError):
        image.seek(frame - 1)
        return
    raise ImageError(f"{name} has no frame {frame}")


def _check_pixels(image: Image.Image, name: str, limit: int | None) -> None:
    """Refuse an image of too many pixels; have a plain JPEG decoded at half its size instead."""
    if limit is None:
        return
    width, height = image.size
    is_plain = image.format == "JPEG" and not image.info.get("progressive")
    if is_plain and limit < width * height <= MAX_REDUCED_PIXELS * limit:
        image.draft(None, (width // 2, height // 2))  # a progressive one would need all of it
    # The decoder of JPEG 2000 keeps all values twice, in 32 bits; that of a WebP film three frames.
    is_film = image.format == "WEBP" and getattr(image, "is_animated", False)
    cost = 4 if is_film or image.format == "JPEG2000" else 1
    if image.width * image.height * cost > limit:
        raise ImageTooLargeError(
            f"{name} is too large: {width} x {height} pixels; at most"
            f" {limit // cost} pixels are decoded, so reduce it first"
        )


def _check_work(image: Image.Image, stream: IO[bytes], name: str) -> None:
    """Refuse an image of few bytes that takes minutes or gigabytes to decode.

    Raises:
        ImageError: says what there is too much of.
    """
    if image.format == "JPEG" and image.info.get("progressive"):
        scans = _count(stream, b"\xff\xda")
        if scans > MAX_SCANS or scans * image.width * image.height > MAX_SCANNED_PIXELS:
            raise ImageError(
                f"{name} has {scans} progressive scans of {image.width} x {image.height} pixels,"
                " too many to decode; save it as a plain JPEG"
            )
    elif image.format == "JPEG2000":
        stream.seek(0)
        blocks = _jpeg2000_blocks(stream.read(2**16))
        if blocks > MAX_BLOCKS:
            raise ImageError(
                f"{name} is JPEG 2000 of {blocks} blocks, too many to decode; save it as PNG"
            )


def _count(stream: IO[bytes], marker: bytes) -> int:
    """Count a marker of two bytes in a file."""
    stream.seek(0)
    found, last = 0, b""
    while chunk := stream.read(2**20):
        found += (last + chunk).count(marker)
        last = chunk[-1:]
    stream.seek(0)
    return found


def _jpeg2000_blocks(header: bytes) -> int:
    """Return how many blocks the main header of JPEG 2000 announces; 0 if it is damaged.

    Of every component each layer lists all precincts, and each of those its code blocks.
    """
    start = header.find(b"\xff\x4f\xff\x51")
    try:
        right, bottom, left, top, width, height = struct.unpack_from(">6I", header, start + 8)
        (components,) = struct.unpack_from(">H", header, start + 40)
        blocks = 0
        offset = start + 2
        while header[offset : offset + 2] not in (b"\xff\x90", b""):  # the first tile
            if header[offset : offset + 2] == b"\xff\x52":  # how tiles are coded
                style, layers, levels, wide, high = struct.unpack_from(
                    ">BxHxBBB", header, offset + 4
                )
                block = 2 ** (wide + high + 4)
                precincts = header[offset + 14 : offset + 15 + levels] if style & 1 else b"\xff"
                smallest = min(2 ** ((size & 15) + (size >> 4)) for size in precincts)
                pixels = (right - left) * (bottom - top)
                tiles = -(-right // max(width, 1)) * -(-bottom // max(height, 1))
                count = tiles * (levels + 1) + pixels // smallest
                blocks = max(blocks, components * (layers * count + pixels // min(block, smallest)))
            offset += 2 + struct.unpack_from(">H", header, offset + 2)[0]
        return blocks
    except (struct.error, ValueError):
        return 0


def orientation(image: Image.Image) -> int | None:
    """Look in the EXIF block, in PNG's older text form of it, and in XMP, as Pillow does."""
    if hasattr(image, "tag_v2"):
        found = image.tag_v2.get(ExifTags.Base.Orientation)
    else:
        exif = image.info.get("exif")
        if exif is None and (text := image.info.get("Raw profile type exif")):
            try:
                exif = bytes.fromhex("".join(text.split("\n")[3:]))
            except ValueError:
                exif = None
        found = exif_orientation(exif) if isinstance(exif, bytes) else None
    if found is not None:
        return found if isinstance(found, int) else None
    xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or ""
    text = xmp.decode("latin-1") if isinstance(xmp, bytes) else str(xmp)
    match = re.search(r'tiff:Orientation(?:="|>)([0-9])', text)
    return int(match[1]) if match else None


def exif_orientation(exif: bytes) -> int | None:
    """Return the orientation in a block of EXIF: a TIFF header and a list of 12-byte entries.

    None if it has none or is damaged before it.
    """
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    order = _BYTE_ORDERS.get(exif[:4])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for offset in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", exif, offset)
            if tag == ExifTags.Base.Orientation and kind in _NUMBER_KINDS:
                value: int = struct.unpack_from(order + _NUMBER_KINDS[kind], exif, offset + 8)[0]
                return value
    except struct.error:
        pass
    return None
