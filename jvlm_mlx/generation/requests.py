"""One request of a batch, and what became of it."""

from collections.abc import Mapping, Sequence
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
    def of(cls, request: "BatchRequest | Mapping[str, Any] | Prompt") -> "BatchRequest":
        """Return a request that may be given as a mapping, with options beside the prompt.

        A bare prompt is a request, too.

        Raises:
            RequestError: it has no prompt.
        """
        if isinstance(request, BatchRequest):
            return request
        if isinstance(request, str | list):
            return cls(prompt=request)
        if not isinstance(request, Mapping) or "prompt" not in request:
            raise RequestError("a request needs a prompt")
        options = dict(request)
        return cls(
            prompt=options.pop("prompt"),
            images=options.pop("images", None),
            system=options.pop("system", None),
            options=options,
        )


AnyRequest = BatchRequest | Mapping[str, Any] | Prompt


def with_images(prompts: Sequence[AnyRequest], images: Sequence[Any]) -> list[BatchRequest]:
    """Return a request for each bare prompt, with an image or a list of images, or None.

    Raises:
        RequestError: there are not as many of them as prompts, or a request has its own.
    """
    if isinstance(images, str | bytes) or len(images) != len(prompts):
        raise RequestError(f"images must be a list of {len(prompts)}, an entry for each prompt")
    requests = []
    for prompt, own in zip(prompts, images, strict=True):
        if isinstance(prompt, BatchRequest | Mapping):
            raise RequestError("images: a request that is no bare prompt has images of its own")
        requests.append(BatchRequest(prompt=prompt, images=own))
    return requests


@dataclass(frozen=True, kw_only=True)
class BatchResponse:
    """An answer, or why there is none."""

    index: int
    """Which of the requests it belongs to, from 0."""
    result: GenerationResult | None
    error: str | None
    """One line; None if there is a result."""
