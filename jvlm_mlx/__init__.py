"""Jina-VLM on Apple Silicon: the original's answers, in MLX.

from jvlm_mlx import generate, load

model, processor = load()
print(generate(model, processor, "What is this?", images="photo.jpg").text)
"""

import logging

from .importing import import_mlx_lm
from .version import __version__

# Notices belong to the app: without a handler of its own, nothing is printed.
logging.getLogger(__name__).addHandler(logging.NullHandler())
import_mlx_lm()

from .checkpoint.load import load  # noqa: E402 - mlx-lm must have been imported with care
from .errors import (  # noqa: E402
    CheckpointError,
    ImageError,
    JvlmError,
    PromptError,
    RequestError,
    UnsupportedSettingError,
)
from .generate import (  # noqa: E402
    GenerationOptions,
    GenerationPiece,
    GenerationResult,
    generate,
    stream_generate,
)
from .model import Model  # noqa: E402
from .processor import ModelInputs, Processor  # noqa: E402

__all__ = [
    "CheckpointError",
    "GenerationOptions",
    "GenerationPiece",
    "GenerationResult",
    "ImageError",
    "JvlmError",
    "Model",
    "ModelInputs",
    "Processor",
    "PromptError",
    "RequestError",
    "UnsupportedSettingError",
    "__version__",
    "generate",
    "load",
    "stream_generate",
]
