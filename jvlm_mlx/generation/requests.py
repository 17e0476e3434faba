"""One question of a batch, and what became of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import RequestError
from ..processing.processor import Prompt
from .response import GenerationResult


@dataclass(frozen=True, kw_only=True)
class BatchRequest:
    """What `generate` would be asked."""

    prompt: Prompt
    images: Any = None
    system: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """See `GenerationOptions`; instead of those of the batch."""

    @classmethod
    def of(cls, request: "BatchRequest | Mapping[str, Any]") -> "BatchRequest":
        """Return a request that may be given as a mapping, with options beside the prompt.

        Raises:
            RequestError: it has no prompt.
        """
        if isinstance(request, BatchRequest):
            return request
        if not isinstance(request, Mapping) or "prompt" not in request:
            raise RequestError("a request needs a prompt")
        options = dict(request)
        return cls(
            prompt=options.pop("prompt"),
            images=options.pop("images", None),
            system=options.pop("system", None),
            options=options,
        )


@dataclass(frozen=True, kw_only=True)
class BatchResponse:
    """An answer, or why there is none."""

    index: int
    """Which of the requests it belongs to, from 0."""
    result: GenerationResult | None
    error: str | None
    """One line; None if there is a result."""
