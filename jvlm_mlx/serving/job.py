"""One answer that somebody waits for, and counts of what became of all of them."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ..generation.options import GenerationOptions
from ..generation.response import GenerationResponse
from ..processing.image_processor import PromptImage
from ..processing.inputs import PreparedPrompt
from .api_error import ApiError

Emit = Callable[[GenerationResponse | ApiError], None]
"""Takes every response of a job and, if it fails, one error. Called on threads of the scheduler."""


@dataclass(eq=False)
class Job:
    """One answer that somebody waits for."""

    prompt: PreparedPrompt[PromptImage]
    options: GenerationOptions
    emit: Emit
    owner: str = ""
    """Whose it is; nothing that is cached for one owner is used for another."""
    cancelled: bool = False
    """May be set from any thread, at any time."""
    start: float = field(default_factory=time.perf_counter)
    max_tokens: int = 0
    reserved: int = 0
    """Bytes of KV cache that are set aside for it."""
    is_queued: bool = False
    """Whether it takes a place among those that wait."""


@dataclass
class Counters:
    """What happened since the start, for health and metrics."""

    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
