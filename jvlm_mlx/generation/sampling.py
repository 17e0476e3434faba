"""Choosing the next token, with mlx-lm's filters and penalties."""

import secrets
from collections.abc import Callable
from functools import partial

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from .._mlx_lm import apply_min_p, apply_top_k, apply_top_p, make_logits_processors
from .options import GenerationOptions

Sampler = Callable[[mx.array], mx.array]
LogitsProcessor = Callable[[mx.array, mx.array], mx.array]


def make_sampler(options: GenerationOptions) -> Sampler:
    """Return a function from log probabilities (B, vocabulary) to tokens (B,).

    Filters and their order are mlx-lm's. Only the draw is made here, from a key of its own:
    mlx-lm's draws from the random state of the process, which belongs to the app.
    """
    if options.temperature == 0:
        return partial(mx.argmax, axis=-1)
    filters: list[Callable[[mx.array], mx.array]] = []
    if options.top_p < 1:
        filters.append(partial(apply_top_p, top_p=options.top_p))
    if options.min_p > 0:
        filters.append(partial(apply_min_p, min_p=options.min_p))
    if options.top_k > 0:
        filters.append(partial(_keep_top_k, top_k=options.top_k))
    key = mx.random.key(secrets.randbits(63) if options.seed is None else options.seed)

    def sample(logprobs: mx.array) -> mx.array:
        nonlocal key
        for keep_likely in filters:
            logprobs = keep_likely(logprobs)
        key, draw = mx.random.split(key)
        return mx.random.categorical(logprobs * (1 / options.temperature), key=draw)

    return sample


def _keep_top_k(logprobs: mx.array, top_k: int) -> mx.array:
    # mlx-lm's filter refuses as many as there are, which is all of them.
    return apply_top_k(logprobs, top_k=top_k) if top_k < logprobs.shape[-1] else logprobs


def make_penalties(
    options: GenerationOptions, prompt_ids: npt.NDArray[np.integer], vocab_size: int
) -> list[LogitsProcessor]:
    """Return mlx-lm's penalties, made to see words only.

    The added tokens of images have no logits: handed to a penalty they would index beyond the
    array and corrupt memory, and replaced by some other id they would penalize that one. So
    penalties see the prompt's words followed by the answer, and nothing of the images.

    Args:
        options: of the request.
        prompt_ids: (L,) the prompt that `generate_step` is given.
        vocab_size: columns of the logits.
    """
    size = options.repetition_context_size
    penalty = options.repetition_penalty
    penalties = make_logits_processors(
        repetition_penalty=None if penalty == 1 else penalty,
        repetition_context_size=size,
        presence_penalty=options.presence_penalty,
        presence_context_size=size,
        frequency_penalty=options.frequency_penalty,
        frequency_context_size=size,
    )
    words = mx.array(prompt_ids[prompt_ids < vocab_size][-size:])
    return [_words_only(penalty, words) for penalty in penalties]


def _words_only(penalty: LogitsProcessor, words: mx.array) -> LogitsProcessor:
    prompt_length: int | None = None

    def process(tokens: mx.array, logits: mx.array) -> mx.array:
        # The first call comes with the prompt, or what of it mlx-lm keeps; later tokens follow.
        nonlocal prompt_length
        if prompt_length is None:
            prompt_length = len(tokens)
        return penalty(mx.concatenate([words, tokens[prompt_length:]]), logits)

    return process
