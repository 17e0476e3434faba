"""Choosing the next token, with mlx-lm's filters and penalties."""

import secrets
from collections.abc import Callable, Sequence
from functools import partial

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from .. import _mlx_lm
from .options import GenerationOptions

Sampler = Callable[[mx.array], mx.array]
"""From log probabilities (1, vocabulary) to a token (1,)."""
LogitsProcessor = Callable[[mx.array, mx.array], mx.array]
"""From all text tokens so far (N,) and logits (1, vocabulary) to logits of the same shape."""


def greedy(logits: mx.array) -> mx.array:
    """Return the most probable token of each row: (B, vocabulary) -> (B,)."""
    return mx.argmax(logits, axis=-1)


def make_sampler(options: GenerationOptions) -> Sampler:
    """Return the sampler that options ask for.

    Filters and their order are mlx-lm's. Only the draw is made here, from a key of its own:
    mlx-lm's draws from the random state of the process, which belongs to the app.
    """
    if options.sampler is not None:
        return options.sampler
    if options.temperature == 0:
        return greedy
    filters: list[Callable[[mx.array], mx.array]] = []
    if options.top_p < 1:
        filters.append(partial(_mlx_lm.apply_top_p, top_p=options.top_p))
    if options.min_p > 0:
        filters.append(partial(_mlx_lm.apply_min_p, min_p=options.min_p))
    if options.top_k > 0:
        filters.append(partial(_keep_top_k, top_k=options.top_k))
    key = mx.random.key(secrets.randbits(63) if options.seed is None else options.seed)

    def sample(logprobs: mx.array) -> mx.array:
        nonlocal key
        for keep_probable in filters:
            logprobs = keep_probable(logprobs)
        key, draw = mx.random.split(key)
        return mx.random.categorical(logprobs * (1 / options.temperature), key=draw)

    return sample


def _keep_top_k(logprobs: mx.array, top_k: int) -> mx.array:
    # mlx-lm's filter refuses as many as there are, which is all of them.
    return _mlx_lm.apply_top_k(logprobs, top_k=top_k) if top_k < logprobs.shape[-1] else logprobs


def make_processors(options: GenerationOptions) -> Sequence[LogitsProcessor]:
    """Return mlx-lm's penalties, as options ask for them, and then the caller's own processors."""
    size = options.repetition_context_size
    penalty = options.repetition_penalty
    penalties: list[LogitsProcessor] = _mlx_lm.make_logits_processors(
        repetition_penalty=None if penalty == 1 else penalty,
        repetition_context_size=size,
        presence_penalty=options.presence_penalty,
        presence_context_size=size,
        frequency_penalty=options.frequency_penalty,
        frequency_context_size=size,
    )
    return (*penalties, *options.logits_processors)


def text_tokens(prompt_ids: npt.NDArray[np.integer], vocab_size: int) -> mx.array:
    """Return the tokens of a prompt that logits processors see: those of text.

    The added tokens of images have no logits: handed to a penalty they would index beyond the
    array and corrupt memory, and replaced by some other id they would penalize that one.
    """
    return mx.array(prompt_ids[prompt_ids < vocab_size].astype(np.int32))


def top_logprobs(count: int, logprobs: mx.array, token: mx.array) -> tuple[mx.array, ...]:
    """Return what a response tells of probabilities.

    Args:
        count: how many of the most probable tokens; may be 0.
        logprobs: (1, vocabulary).
        token: (1,) the one that was chosen.

    Returns:
        The log probability of the token (1, 1), then the most probable tokens (1, count) and
        their log probabilities (1, count), the highest first.
    """
    chosen = mx.take_along_axis(logprobs, token[:, None], axis=-1)
    if count == 0:
        return (chosen,)
    count = min(count, logprobs.shape[-1])
    order = mx.argsort(-logprobs, axis=-1)[:, :count]
    return chosen, order, mx.take_along_axis(logprobs, order, axis=-1)
