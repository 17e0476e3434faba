"""Answers as chat completions, whole or as the chunks of a stream.

One id and one time of creation throughout. Only the first chunk carries the role, the last one an
empty delta and the finish reason.
"""

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..generation.response import Counts

DONE = "data: [DONE]\n\n"
KEEP_ALIVE = ": keep-alive\n\n"
"""A comment, which clients pass over; only after the first chunk, since one of them did not."""

_MIN_LOGPROB = -9999.0
"""The API's number for a token that cannot come; JSON has none for minus infinity."""
_FINISH_REASONS = {"stop": "stop", "length": "length", "repetition": "length"}
"""The API's finish reason for each of ours; one cut for repetition is unfinished."""


@dataclass(frozen=True)
class TokenLogprob:
    """One token with its log probability and those of its alternatives."""

    token: str
    """Its text; the texts of all tokens joined are the answer."""
    data: bytes
    """Its bytes, which may be a part of a character."""
    logprob: float
    alternatives: tuple[tuple[str, bytes, float], ...]
    """Text, bytes and log probability, most probable first."""

    def as_json(self) -> dict[str, Any]:
        """Return it as the API has it."""
        return {
            "token": self.token,
            "logprob": finite(self.logprob),
            "bytes": list(self.data),
            "top_logprobs": [
                {"token": text, "logprob": finite(logprob), "bytes": list(data)}
                for text, data, logprob in self.alternatives
            ],
        }


def finite(logprob: float) -> float:
    """Return a log probability as JSON can hold it."""
    return max(logprob, _MIN_LOGPROB)


def finish_reason(reason: str | None) -> str | None:
    """Return the API's finish reason; None until the answer ends."""
    return None if reason is None else _FINISH_REASONS.get(reason, "stop")


def usage(counts: Sequence[Counts]) -> dict[str, Any]:
    """Return what a request cost: its prompt once, and the tokens of all its answers."""
    prompt = counts[0].prompt_tokens if counts else 0
    completion = sum(one.generation_tokens for one in counts)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {
            "cached_tokens": counts[0].cached_tokens if counts else 0,
            "image_tokens": counts[0].image_tokens if counts else 0,
        },
    }


def timings(counts: Sequence[Counts]) -> dict[str, Any]:
    """Return how long the first answer of a request took, by the names that llama.cpp has.

    An extension of the API, which chat windows show if they find it.
    """
    one = counts[0]
    prefilled = one.prompt_tokens - one.cached_tokens
    predicted = max(0, one.generation_tokens - 1)
    speed = one.generation_tps
    return {
        "cache_n": one.cached_tokens,
        "prompt_n": prefilled,
        "prompt_ms": one.first_token_seconds * 1e3,
        "prompt_per_second": one.prompt_tps,
        "predicted_n": one.generation_tokens,
        "predicted_ms": predicted / speed * 1e3 if speed else 0.0,
        "predicted_per_second": speed,
    }


def event(content: dict[str, Any]) -> str:
    """Return one server-sent event. JSON has no line breaks outside of texts, and none inside."""
    return f"data: {json.dumps(content, ensure_ascii=False, allow_nan=False)}\n\n"


@dataclass(frozen=True)
class Completion:
    """One answered request, of one choice or several."""

    model: str
    include_usage: bool = False
    """Whether chunks have a `usage`, which is null in all but the last."""
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, choices: Sequence[dict[str, Any]], counts: Sequence[Counts]) -> dict[str, Any]:
        """Return the response of a request without a stream."""
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": list(choices),
            "usage": usage(counts),
            "timings": timings(counts),
        }

    def choice(
        self, index: int, text: str, reason: str, logprobs: Sequence[TokenLogprob] | None
    ) -> dict[str, Any]:
        """Return one choice of a whole response."""
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": _logprobs(logprobs),
            "finish_reason": finish_reason(reason),
        }

    def first(self, index: int) -> dict[str, Any]:
        """Return the chunk that a choice begins with, sent when the request is admitted."""
        return self._chunk(index, {"role": "assistant", "content": ""}, None)

    def text(
        self, index: int, text: str, logprobs: Sequence[TokenLogprob] | None
    ) -> dict[str, Any]:
        """Return a chunk of text."""
        return self._chunk(index, {"content": text}, None, logprobs)

    def last(self, index: int, reason: str) -> dict[str, Any]:
        """Return the chunk that ends a choice."""
        return self._chunk(index, {}, finish_reason(reason))

    def costs(self, counts: Sequence[Counts]) -> dict[str, Any]:
        """Return the chunk behind all choices that says what the request cost."""
        return {
            **self._head(), "choices": [], "usage": usage(counts), "timings": timings(counts),
        }  # fmt: skip

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        reason: str | None,
        logprobs: Sequence[TokenLogprob] | None = None,
    ) -> dict[str, Any]:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": _logprobs(logprobs),
            "finish_reason": reason,
        }
        chunk = {**self._head(), "choices": [choice]}
        return {**chunk, "usage": None} if self.include_usage else chunk

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
        }


def _logprobs(tokens: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    if tokens is None:
        return None
    return {"content": [one.as_json() for one in tokens], "refusal": None}
