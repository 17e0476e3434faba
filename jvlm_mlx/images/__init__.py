"""Pictures: from anything a user calls one to tiles, tokens and index maps.

In the order of a picture's way: `source` opens it (`download`, `decode`, `orientation`), `tiling`
plans its tiles, `tiles` cuts them with the help of `resize`, `windows` says where their features
go, `opened` and `processor` put it all together. All of it is numpy: the arrays reach MLX with
the model.
"""

from .opened import OpenedImage, ProcessedImage
from .processor import ImageProcessor
from .source import ImageSource, open_image
from .tiling import ImageLayout, plan_layout
from .windows import ImageTokenIds

__all__ = [
    "ImageLayout",
    "ImageProcessor",
    "ImageSource",
    "ImageTokenIds",
    "OpenedImage",
    "ProcessedImage",
    "open_image",
    "plan_layout",
]
