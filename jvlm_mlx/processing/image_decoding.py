"""From the bytes of an image file to an RGB image, with Pillow and without its warnings.

`Image.open` warns where this package raises, and a library cannot silence warnings for its own
thread alone. So the formats are asked one by one here, and what they would warn about is avoided.
"""

import struct
from typing import IO

from PIL import ExifTags, Image, JpegImagePlugin

from ..errors import ImageError
from .orientation import SIDEWAYS, orientation, turn_upright


def image_size(stream: IO[bytes], name: str) -> tuple[int, int]:
    """Return width and height of the image in `stream`, upright; its pixels are not decoded.

    Raises:
        ImageError: it is no image, or larger than `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    image = _identify(stream, name)
    width, height = image.size
    # Pillow has exchanged them already as TIFF's own tag says, but not as XMP says.
    exchanged = ExifTags.Base.Orientation in getattr(image, "tag_v2", ())
    sideways = not exchanged and orientation(image) in SIDEWAYS
    return (height, width) if sideways else (width, height)


def decode(stream: IO[bytes], name: str) -> Image.Image:
    """Return the image in `stream`, first frame, upright and in RGB; `name` is for messages.

    Raises:
        ImageError: it is no image, damaged, or larger than `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    image = _identify(stream, name)
    try:
        image.load()
        return to_rgb(turn_upright(image))
    except Exception as error:  # Decoders raise whatever a damaged file makes them trip over.
        raise ImageError(f"{name} cannot be decoded: {reason(error)}") from error


def _identify(stream: IO[bytes], name: str) -> Image.Image:
    try:
        image = identify(stream)
    except Exception as error:  # as above
        raise ImageError(f"{name} cannot be decoded: {reason(error)}") from error
    if image is None:
        raise ImageError(f"{name} is no image of a format that Pillow reads")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ImageError(
            f"{name} is too large: {image.width} x {image.height} pixels; at most"
            f" {limit} pixels are decoded, so reduce it first"
        )
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image in RGB by plain conversion: alpha is dropped. No copy if it is RGB."""
    if image.mode == "RGB":
        return image
    if "transparency" in image.info:
        # Without effect on the colors, but Pillow warns about some kinds of it.
        image = image.copy()
        del image.info["transparency"]
    return image.convert("RGB")


def reason(error: BaseException) -> str:
    """Return what an exception says, on one line; its kind if it says nothing."""
    said = error.strerror if isinstance(error, OSError) else None
    return " ".join(str(said or error).split()) or type(error).__name__


class _Jpeg(JpegImagePlugin.JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Leave the printing resolution: nobody asks for it, and damaged metadata would warn."""


def identify(stream: IO[bytes]) -> Image.Image | None:
    """Open an image with the first format that takes it; its pixels are not decoded yet."""
    prefix = stream.read(16)
    for register_formats in (Image.preinit, Image.init):  # the common ones first, then all
        register_formats()
        for name in tuple(Image.ID):
            factory, accepts = Image.OPEN[name]
            try:
                accepted = accepts is None or accepts(prefix)
                # A text in place of true or false says that support for the format is missing.
                if not accepted or isinstance(accepted, str):
                    continue
                stream.seek(0)
                # Pillow's factory for JPEG looks for more images in the file; the first will do.
                return _Jpeg(stream) if name == "JPEG" else factory(stream, "")
            except (SyntaxError, IndexError, TypeError, struct.error):
                continue
    return None
