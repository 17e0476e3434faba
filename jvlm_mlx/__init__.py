"""Jina-VLM on Apple Silicon: the original's answers, in MLX.

from jvlm_mlx import generate, load

model, processor = load()
print(generate(model, processor, "What is this?", images="photo.jpg").text)
"""

import logging
import sys
import warnings

from . import _mlx_lm  # noqa: F401 - guards the import of mlx-lm, before anything needs it
from .version import __version__

# Notices belong to the app: without a handler of its own, nothing is printed.
logging.getLogger(__name__).addHandler(logging.NullHandler())
if sys.argv[:1] == ["-m"]:
    # Python is looking for the module of `python -m jvlm_mlx.generate`. It would warn that this
    # package has imported that module already, which does no harm: the module runs nothing twice.
    warnings.filterwarnings("ignore", r"'jvlm_mlx\.", RuntimeWarning, "runpy")

from .checkpoint.loader import load  # noqa: E402
from .convert import Conversion, convert, inspect, verify  # noqa: E402
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
from .evaluate import evaluate, score_predictions  # noqa: E402
from .evaluation.likelihood import loglikelihood  # noqa: E402
from .explain import Explanation, explain  # noqa: E402
from .fuse import fuse  # noqa: E402
from .generate import generate, stream_generate  # noqa: E402
from .generation.batching import batch_generate  # noqa: E402
from .generation.caches import CacheStats, GenerationCaches  # noqa: E402
from .generation.encoded_image import EncodedImage  # noqa: E402
from .generation.image_encoding import encode_image  # noqa: E402
from .generation.options import GenerationOptions  # noqa: E402
from .generation.requests import BatchRequest, BatchResponse  # noqa: E402
from .generation.response import GenerationResponse, GenerationResult  # noqa: E402
from .generation.session import ChatSession  # noqa: E402
from .model import Model  # noqa: E402
from .processing.inputs import ModelInputs  # noqa: E402
from .processing.processor import Processor  # noqa: E402
from .train import train  # noqa: E402
from .training import StepReport, TrainingConfig, TrainingResult  # noqa: E402

__all__ = [
    "BatchRequest",
    "BatchResponse",
    "CacheStats",
    "ChatSession",
    "CheckpointError",
    "Conversion",
    "ConversionError",
    "DataError",
    "EncodedImage",
    "Explanation",
    "GenerationCaches",
    "GenerationOptions",
    "GenerationResponse",
    "GenerationResult",
    "ImageError",
    "JvlmError",
    "Model",
    "ModelInputs",
    "Processor",
    "PromptError",
    "RequestError",
    "SessionError",
    "StepReport",
    "TrainingConfig",
    "TrainingError",
    "TrainingResult",
    "UnsupportedSettingError",
    "__version__",
    "batch_generate",
    "convert",
    "encode_image",
    "evaluate",
    "explain",
    "fuse",
    "generate",
    "inspect",
    "load",
    "loglikelihood",
    "score_predictions",
    "stream_generate",
    "train",
    "verify",
]
