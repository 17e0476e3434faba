"""What one answer may take over from earlier ones: features of pictures, states of prompts."""

from .caches import GenerationCaches
from .encoded_image import EncodedImage
from .stats import CacheStats

__all__ = ["CacheStats", "EncodedImage", "GenerationCaches"]
