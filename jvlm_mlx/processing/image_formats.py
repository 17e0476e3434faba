"""The image formats that are opened at all, each by Pillow's class for it, without its warnings.

`Image.open` tries every format that Pillow knows, among them some that start other programs (EPS
runs Ghostscript), and it warns where this package raises. A library cannot silence warnings for
its own thread alone. So the formats are tried one by one here, with classes that do not warn.
"""

import contextlib
import ctypes
import io
import struct
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import IO, Any

from PIL import (
    IcoImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    _imaging,
)

FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "HEIF", "PPM", "ICO", "JPEG2000",
)  # fmt: skip
"""By Pillow's names. HEIF needs pi-heif, or another plugin that the program has registered."""
FORMAT_NAMES = "JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF, HEIC, PPM, ICO and JPEG 2000"
SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".avif", ".heic", ".heif",
    ".ppm", ".pgm", ".pbm", ".ico", ".jp2",
)  # fmt: skip
"""Of files of these formats, where a folder is searched or a text may name a file."""

_REFUSED = {
    b"%!PS": "EPS",
    b"\xc5\xd0\xd3\xc6": "EPS",
    b"%PDF": "PDF",
    b"8BPS": "a Photoshop file",
    b"<svg": "SVG",
    b"<?xml": "XML or SVG",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"PK\x03\x04": "a ZIP archive or an office document",
    b"\x1a\x45\xdf\xa3": "a film",
    b"icns": "an icon of macOS",
    b"{": "JSON",
}
"""First bytes, in lower case where they are text, of what is often taken for an image."""
_Function = Callable[..., Any]
_AVIF_BRANDS = (b"avif", b"avis")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def identify(stream: IO[bytes]) -> Image.Image | None:
    """Open an image with the format that takes it; its pixels are not decoded yet.

    Returns:
        None if it is of no format of the list, or its header is damaged.
    """
    prefix = stream.read(16)
    for register_formats in (Image.preinit, Image.init):  # the common ones first, then all
        register_formats()
        for name in FORMATS:
            factory, accepts = _opener(name, prefix)
            try:
                accepted = accepts is not None and accepts(prefix)
                # A text in place of true or false says that support for the format is missing.
                if not accepted or isinstance(accepted, str) or factory is None:
                    continue
                stream.seek(0)
                return factory(stream, "")
            except (SyntaxError, IndexError, TypeError, struct.error):
                continue
    return None


def what_it_is(prefix: bytes) -> str | None:
    """Return what a file is that is opened as no image, from its first bytes; None: no idea."""
    start = prefix.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    for magic, name in _REFUSED.items():
        if start.startswith(magic.lower()):
            return name
    if prefix[4:8] == b"ftyp":
        brand = prefix[8:12]
        return "HEIC" if brand in _HEIF_BRANDS else "AVIF" if brand in _AVIF_BRANDS else "a film"
    for name, (_, accepts) in Image.OPEN.items():
        with contextlib.suppress(IndexError, struct.error):  # of files of a few bytes
            if name not in FORMATS and accepts is not None and accepts(prefix) is True:
                return name
    return None


def _opener(name: str, prefix: bytes) -> tuple[_Function | None, _Function | None]:
    """Return the class that opens a format, and the function that knows its first bytes."""
    factory, accepts = Image.OPEN.get(name, (None, None))
    if name == "HEIF" and factory is None and prefix[8:12] in _HEIF_BRANDS:
        try:
            from pi_heif import HeifImageFile
        except ImportError:
            return None, None
        return HeifImageFile, lambda prefix: prefix[4:8] == b"ftyp"
    return _CLASSES.get(name, factory), accepts


@cache
def silence_libtiff() -> None:
    """Let Pillow's libtiff print nothing about damaged TIFF files; what is raised stays.

    Its handler of messages is the process's own, so the command lines alone call this.
    """
    assert _imaging.__file__ is not None
    with contextlib.suppress(OSError, AttributeError):  # built into Pillow, or without it
        handler = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
        handler.argtypes, handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        handler(None)


class _Silence:
    """Replaces the module `warnings`."""

    @staticmethod
    def warn(*arguments: Any, **keywords: Any) -> None:
        """Say nothing."""


def _quietly(method: Any, **replaced: Any) -> Any:
    """Return a method of Pillow that does not warn, for a subclass here.

    It is the same code with another global `warnings`; what Pillow does elsewhere in the process
    stays as it is. `replaced` are classes that it uses, in their quiet forms.
    """
    quiet = FunctionType(
        method.__code__,
        {**method.__globals__, "warnings": _Silence, **replaced},
        method.__name__,
        method.__defaults__,
        method.__closure__,
    )
    quiet.__kwdefaults__ = method.__kwdefaults__
    return quiet


class _Jpeg(JpegImagePlugin.JpegImageFile):
    """The first image of a file. Pillow's own factory looks for more of them."""

    def _read_dpi_from_exif(self) -> None:
        """Leave the printing resolution: nobody asks for it, and damaged metadata would warn."""


class _PngStream(PngImagePlugin.PngStream):
    chunk_acTL = _quietly(PngImagePlugin.PngStream.chunk_acTL)  # noqa: N815 - Pillow's name


class _Png(PngImagePlugin.PngImageFile):
    _open = _quietly(PngImagePlugin.PngImageFile._open, PngStream=_PngStream)


class _TiffDirectory(TiffImagePlugin.ImageFileDirectory_v2):
    load = _quietly(TiffImagePlugin.ImageFileDirectory_v2.load)
    _setitem = _quietly(TiffImagePlugin.ImageFileDirectory_v2._setitem)


class _Tiff(TiffImagePlugin.TiffImageFile):
    _open = _quietly(TiffImagePlugin.TiffImageFile._open, ImageFileDirectory_v2=_TiffDirectory)

    def load_end(self) -> None:
        """Leave the image as it is stored: it is turned upright like any other, by one tag."""


class _Ico(IcoImagePlugin.IcoImageFile):
    """The largest image of an icon. Pillow's class decodes it before its size can be checked."""

    def _open(self) -> None:
        assert self.fp is not None
        self.ico = IcoImagePlugin.IcoFile(self.fp)
        offset = self.ico.entry[0].offset
        self.fp.seek(offset)
        header = self.fp.read(24)
        self._mode = "RGBA"
        if header.startswith(b"\x89PNG"):
            self._png: Any = _Png(io.BytesIO(header + self.fp.read()))
            self._size = self._png.size
        else:
            self._png = None
            width, height = struct.unpack_from("<II", header, 4)  # of image and mask
            if width * height > 2**24:
                raise SyntaxError("not an icon")
            self._size = width, height // 2

    @property  # type: ignore[misc]
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self._size

    def load(self) -> Any:
        """Decode it."""
        if self._im is None:
            image = self._png or self.ico.frame(0)
            image.load()
            self.im, self._mode, self._size = image.im, image.mode, image.size
            self.palette = image.palette
        return Image.Image.load(self)


_CLASSES: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": _Jpeg,
    "PNG": _Png,
    "TIFF": _Tiff,
    "ICO": _Ico,
}
