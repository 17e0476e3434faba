"""Conversion: `convert`, and on the terminal `jvlm convert` or `python -m jvlm_mlx.convert`.

Comparison of a conversion with its source is in `verify`, a look at what a folder or file holds
in `inspect`.
"""

from .conversion import Conversion, convert

__all__ = ["Conversion", "convert"]
