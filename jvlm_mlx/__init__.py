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
import_mlx_lm()  # with care, before anything else imports mlx-lm

from .batch import BatchAnswer, BatchRequest, generate_batch  # noqa: E402 - see above
from .chat import ChatSession  # noqa: E402
from .checkpoint.load import load  # noqa: E402
from .convert import Conversion, convert  # noqa: E402
from .errors import (  # noqa: E402
    CheckpointError,
    ConversionError,
    DataError,
    ImageError,
    JvlmError,
    PromptError,
    RequestError,
    SessionError,
    TrainingError,
    UnsupportedSettingError,
)
from .generate import (  # noqa: E402
    GenerationOptions,
    GenerationPiece,
    GenerationResult,
    encode_image,
    generate,
    stream_generate,
)
from .model import Model  # noqa: E402
from .model_inputs import ModelInputs  # noqa: E402
from .processor import Processor  # noqa: E402
from .reuse import CacheStats, EncodedImage, GenerationCaches  # noqa: E402

__all__ = [
    "BatchAnswer",
    "BatchRequest",
    "CacheStats",
    "ChatSession",
    "CheckpointError",
    "Conversion",
    "ConversionError",
    "DataError",
    "EncodedImage",
    "GenerationCaches",
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
    "SessionError",
    "TrainingError",
    "UnsupportedSettingError",
    "__version__",
    "convert",
    "encode_image",
    "generate",
    "generate_batch",
    "load",
    "stream_generate",
]
