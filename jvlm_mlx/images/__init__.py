"""Pictures: from anything a user calls one to tiles, tokens and index maps.

In the order of a picture's way: `source` opens it (`download`, `decode`, `orientation`), `tiling`
plans its tiles, `tiles` cuts them with the help of `resize`, `windows` says where their features
go, and `processor` puts it all together. All of it is numpy: the arrays reach MLX with the model.
"""

from .processor import ImageProcessor, ProcessedImage
from .source import ImageSource, open_image
from .tiling import ImageLayout, plan_layout
from .windows import ImageTokenIds

__all__ = [
    "ImageLayout",
    "ImageProcessor",
    "ImageSource",
    "ImageTokenIds",
    "ProcessedImage",
    "open_image",
    "plan_layout",
]
