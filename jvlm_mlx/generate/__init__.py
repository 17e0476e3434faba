"""Answering: `stream_generate` and `generate`; `python -m jvlm_mlx.generate` on the terminal."""

from .options import GenerationOptions
from .pictures import encode_image
from .results import GenerationPiece, GenerationResult
from .stream import generate, stream_generate

__all__ = [
    "GenerationOptions",
    "GenerationPiece",
    "GenerationResult",
    "encode_image",
    "generate",
    "stream_generate",
]
