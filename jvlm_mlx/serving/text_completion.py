"""Text completions: plain prompts without a chat template, and the scores of their tokens.

Evaluation tools measure likelihoods with `echo` and `logprobs`: the answer then repeats the
prompt, with the log probability of each of its tokens.
"""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..config.json_file import quoted
from ..errors import JvlmError
from ..generation import device
from ..generation.response import GenerationResponse
from ..generation.sampling import top_logprobs
from ..model import Model
from ..processing.processor import Processor
from .api_error import invalid
from .chat_request import MAX_TOP_LOGPROBS, Reader, boolean, generation_options, integer
from .chat_response import finish_reason, finite, usage

MAX_PROMPTS = 64
_DEFAULT_TOKENS = 16
_CHUNK = 512
"""Positions whose logits are in memory at once."""


@dataclass(frozen=True, kw_only=True)
class TextRequest:
    """A checked request."""

    model: str
    prompts: tuple[str | tuple[int, ...], ...]
    """Texts, or token ids."""
    options: dict[str, Any]
    """By the names of `GenerationOptions`."""
    max_tokens: int
    echo: bool
    logprobs: int | None

    @classmethod
    def read(cls, body: Any) -> "TextRequest":
        """Check the body of a request.

        Raises:
            ApiError: names the parameter and says what is expected.
        """
        # Read here, since nothing may be generated where the prompt is echoed.
        reader = Reader(body, without=("n", "max_tokens"))
        if body.get("n") not in (None, 1):
            raise invalid(f"n is {quoted(body['n'])}; only 1 is supported here", "n")
        if reader.read("stream", boolean):
            raise invalid("stream: use chat completions for streams", "stream")
        prompts = reader.read("prompt", _prompts)
        if prompts is None:
            raise invalid("prompt is missing", "prompt")
        echo = bool(reader.read("echo", boolean))
        tokens = body.get("max_tokens")
        if tokens is not None:
            tokens = integer(0 if echo else 1, 2**31 - 1)(tokens, "max_tokens")
        request = cls(
            model=reader.read("model", _name) or "",
            prompts=prompts,
            options=generation_options(reader),
            max_tokens=_DEFAULT_TOKENS if tokens is None else tokens,
            echo=echo,
            logprobs=reader.read("logprobs", integer(0, MAX_TOP_LOGPROBS)),
        )
        reader.finish()
        return request


def token_ids(processor: Processor, prompt: str | Sequence[int], vocab_size: int) -> list[int]:
    """Return the tokens of a prompt, without the BOS that goes in front.

    Raises:
        ApiError: a token id is out of range, or a text has something that is no character.
    """
    if isinstance(prompt, str):
        try:
            return processor.tokenizer.encode(prompt, special_tokens=())
        except JvlmError as error:
            raise invalid(str(error), "prompt") from None
    wrong = [token for token in prompt if not 0 <= token < vocab_size]
    if wrong:
        raise invalid(f"prompt has token {wrong[0]}; expected 0 to {vocab_size - 1}", "prompt")
    return list(prompt)


@dataclass(frozen=True)
class PromptScores:
    """Log probabilities of the tokens of a prompt, in view of those before them."""

    chosen: NDArray[np.float32]
    """(L,)"""
    order: NDArray[np.uint32]
    """(L, count) the most probable tokens at each place."""
    best: NDArray[np.float32]
    """(L, count) their log probabilities."""


def score_prompt(model: Model, tokens: Sequence[int], bos: int, count: int) -> PromptScores:
    """Score the tokens of a prompt behind its BOS. Each chunk is a job of the device's worker."""
    cache = device.run(model.make_cache)
    ids = [bos, *tokens]
    parts = [
        device.run(partial(_score_chunk, model, cache, ids, begin, count))
        for begin in range(0, len(tokens), _CHUNK)
    ]
    chosen, order, best = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return PromptScores(chosen, order, best)


def _score_chunk(
    model: Model, cache: list[Any], ids: Sequence[int], begin: int, count: int
) -> tuple[NDArray[Any], ...]:
    """Score the tokens that follow positions `begin` to `begin + _CHUNK`."""
    inputs = ids[begin : min(begin + _CHUNK, len(ids) - 1)]
    targets = mx.array(list(ids[begin + 1 : begin + 1 + len(inputs)]))
    # (1, n) -> (1, n, D) -> (n, V)
    hidden = model.decoder(model.decoder.embed(mx.array(list(inputs))[None]), cache)
    logits = model.head(hidden[0]).astype(mx.float32)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    chosen, order, best = top_logprobs(max(1, count), logprobs, targets)
    mx.eval(chosen, order, best, [one.state for one in cache])
    return np.array(chosen)[:, 0], np.array(order), np.array(best)


def choice(
    processor: Processor,
    index: int,
    request: TextRequest,
    prompt: Sequence[int],
    scores: PromptScores | None,
    responses: Sequence[GenerationResponse],
) -> dict[str, Any]:
    """Return one choice of the response: the prompt, if it is echoed, and what was generated."""
    tokens: list[tuple[str, float, dict[str, float]]] = []

    def spelled(token: int) -> str:
        return processor.tokenizer.token_bytes(token).decode("utf-8", "replace")

    if scores is not None:
        for place, token in enumerate(prompt):
            best = zip(scores.order[place].tolist(), scores.best[place].tolist(), strict=True)
            tokens.append(
                (spelled(token), float(scores.chosen[place]), {spelled(t): p for t, p in best})
            )
    for one in responses:
        if one.token is not None and one.logprob is not None:
            alternatives = {spelled(token): logprob for token, logprob in one.top_logprobs}
            tokens.append((spelled(one.token), one.logprob, alternatives))
    echoed = processor.decode(prompt) if request.echo else ""
    generated = "".join(one.text for one in responses)
    return {
        "index": index,
        "text": echoed + generated,
        "logprobs": None if request.logprobs is None else _logprobs(tokens),
        "finish_reason": finish_reason(responses[-1].finish_reason) if responses else "length",
    }


def _logprobs(tokens: Sequence[tuple[str, float, dict[str, float]]]) -> dict[str, Any]:
    offsets, place = [], 0
    for text, _, _ in tokens:
        offsets.append(place)
        place += len(text)
    return {
        "tokens": [text for text, _, _ in tokens],
        "token_logprobs": [finite(logprob) for _, logprob, _ in tokens],
        "top_logprobs": [
            {text: finite(logprob) for text, logprob in best.items()} for _, _, best in tokens
        ],
        "text_offset": offsets,
    }


def whole(
    model: str,
    choices: Sequence[dict[str, Any]],
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[GenerationResponse]],
) -> dict[str, Any]:
    """Return the response of a request."""
    read = sum(len(prompt) + 1 for prompt in prompts)  # each with its BOS
    generated = [one[-1] for one in responses if one]
    costs = usage(generated)
    costs["prompt_tokens"] = read
    costs["total_tokens"] = read + costs["completion_tokens"]
    return {
        "id": f"cmpl-{secrets.token_hex(12)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": list(choices),
        "usage": costs,
    }


def _prompts(value: Any, name: str) -> tuple[str | tuple[int, ...], ...]:
    """Read a text, a list of texts, token ids, or a list of lists of them."""

    def is_ids(one: Any) -> bool:
        return isinstance(one, list) and all(type(token) is int for token in one) and bool(one)

    if isinstance(value, str) or is_ids(value):
        value = [value]
    if not isinstance(value, list) or not 0 < len(value) <= MAX_PROMPTS:
        raise invalid(f"{name} must be a text or at most {MAX_PROMPTS} texts, or token ids", name)
    if not all((isinstance(one, str) and one) or is_ids(one) for one in value):
        raise invalid(f"{name} must hold texts or lists of token ids, none of them empty", name)
    return tuple(one if isinstance(one, str) else tuple(one) for one in value)


def _name(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise invalid(f"{name} must be a text", name)
    return value
