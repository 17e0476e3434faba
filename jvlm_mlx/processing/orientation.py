"""How an image file says it must be turned to stand upright.

Pillow's own reading of this metadata warns about every damaged tag of a file, and turning the
warnings off is not possible for one thread alone. Only one number is needed, so it is read here;
what cannot be read means upright.
"""

import re
import struct

from PIL import ExifTags, Image

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

SIDEWAYS = (5, 6, 7, 8)
"""Orientations that exchange width and height."""

_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_NUMBER_KINDS = {1: "B", 3: "H", 4: "I"}


def turn_upright(image: Image.Image) -> Image.Image:
    """Return a loaded image upright; it is the same object if it stands so already."""
    if image.format == "TIFF":
        return image  # Pillow turns these while it loads them.
    turn = _TURNS.get(orientation(image) or 1)
    return image if turn is None else image.transpose(turn)


def orientation(image: Image.Image) -> int | None:
    """Look in the EXIF block, in PNG's older text form of it, and in XMP, as Pillow does."""
    exif = image.info.get("exif")
    if exif is None and (text := image.info.get("Raw profile type exif")):
        try:
            exif = bytes.fromhex("".join(text.split("\n")[3:]))
        except ValueError:
            exif = None
    found = exif_orientation(exif) if isinstance(exif, bytes) else None
    if found is not None:
        return found
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
        for place in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", exif, place)
            if tag == ExifTags.Base.Orientation and kind in _NUMBER_KINDS:
                value: int = struct.unpack_from(order + _NUMBER_KINDS[kind], exif, place + 8)[0]
                return value
    except struct.error:
        pass
    return None
