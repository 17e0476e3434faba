"""Jina-VLM on Apple Silicon: the answers of the reference implementation, in MLX.

from jvlm_mlx import generate, load

model, processor = load()
print(generate(model, processor, "What is this?", images="photo.jpg").text)
"""

from . import startup  # isort: skip

if startup.is_command_line():
    startup.begin()

import importlib
import logging
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .errors import (
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
from .version import __version__

if TYPE_CHECKING:
    from .checkpoint.loader import load
    from .convert import Conversion, convert, inspect, verify
    from .evaluate import evaluate, score_predictions
    from .evaluation.likelihood import loglikelihood
    from .explain import Explanation, explain
    from .fuse import fuse
    from .generate import generate, stream_generate
    from .generation.batching import batch_generate
    from .generation.caches import CacheStats, GenerationCaches
    from .generation.image_encoding import EncodedImage, encode_image
    from .generation.options import GenerationOptions
    from .generation.requests import BatchRequest, BatchResponse
    from .generation.response import GenerationResponse, GenerationResult
    from .generation.session import ChatSession
    from .model import Model
    from .processing.inputs import ModelInputs
    from .processing.processor import Processor
    from .train import train
    from .training import StepReport, TrainingConfig, TrainingResult

# Notices belong to the app: without a handler of its own, nothing is printed.
logging.getLogger(__name__).addHandler(logging.NullHandler())

_MODULES = {
    "BatchRequest": "generation.requests",
    "BatchResponse": "generation.requests",
    "CacheStats": "generation.caches",
    "ChatSession": "generation.session",
    "Conversion": "convert",
    "EncodedImage": "generation.image_encoding",
    "Explanation": "explain",
    "GenerationCaches": "generation.caches",
    "GenerationOptions": "generation.options",
    "GenerationResponse": "generation.response",
    "GenerationResult": "generation.response",
    "Model": "model",
    "ModelInputs": "processing.inputs",
    "Processor": "processing.processor",
    "StepReport": "training",
    "TrainingConfig": "training",
    "TrainingResult": "training",
    "batch_generate": "generation.batching",
    "convert": "convert",
    "encode_image": "generation.image_encoding",
    "evaluate": "evaluate",
    "explain": "explain",
    "fuse": "fuse",
    "generate": "generate",
    "inspect": "convert",
    "load": "checkpoint.loader",
    "loglikelihood": "evaluation.likelihood",
    "score_predictions": "evaluate",
    "stream_generate": "generate",
    "train": "train",
    "verify": "convert",
}
"""Where the names are that are imported when they are first used."""


class _Package(ModuleType):
    """This package, in which `generate` is the function, even though a module has that name.

    Python sets a module as an attribute of its package once it is imported; where the package
    promises a function of that name, the function stays.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _MODULES or not isinstance(value, ModuleType):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(f"{self.__name__}.{_MODULES[name]}"), name)
        setattr(self, name, found)
        return found

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_MODULES})


sys.modules[__name__].__class__ = _Package

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
