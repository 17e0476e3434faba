"""Jina-VLM on Apple Silicon: the original's answers, in MLX."""

import logging

from .importing import import_mlx_lm
from .version import __version__

# Notices belong to the app: without a handler of its own, nothing is printed.
logging.getLogger(__name__).addHandler(logging.NullHandler())
import_mlx_lm()

__all__ = ["__version__"]
