"""The KV cache a request asks for, and the device memory it may count on."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

from .._mlx_lm import RotatingKVCache
from ..errors import PromptError, RequestError
from ..model import Model
from .options import GenerationOptions


def make_cache(model: Model, prompt_tokens: int, options: GenerationOptions) -> list[Any]:
    """Return an empty cache for a prompt of `prompt_tokens` tokens.

    A rotating cache keeps the whole prompt and rotates among the answer's tokens only. mlx-lm's
    masks do not know about kept tokens while a prompt is read in chunks, so the prompt must fit
    into the window: then no mask is needed, and only single tokens ever rotate.

    Raises:
        PromptError: the prompt does not fit into the window.
    """
    if options.max_kv_size is None:
        return model.make_cache()
    if prompt_tokens >= options.max_kv_size:
        raise PromptError(
            f"max_kv_size is {options.max_kv_size}, but the prompt has {prompt_tokens} tokens and"
            f" stays in the window: set it to more than {prompt_tokens}, or lower max_crops"
        )
    return [RotatingKVCache(max_size=options.max_kv_size, keep=prompt_tokens) for _ in model.layers]


def kv_group_size(model: Model, options: GenerationOptions) -> int:
    """Return how many values of a head share a scale in a quantized cache.

    Raises:
        RequestError: no group size of mlx divides the head size.
    """
    head_dim = model.config.decoder.block.attention.head_dim
    sizes = (options.kv_group_size,) if options.kv_group_size else (64, 32, 128)
    for size in sizes:
        if size in (32, 64, 128) and head_dim % size == 0:
            return size
    raise RequestError(
        f"kv_bits: a head of {head_dim} values cannot be split into groups of"
        f" {' or '.join(map(str, sizes))}; leave kv_bits out"
    )


class _WiredLimit:
    """Keeps the model's memory wired while at least one answer is being made.

    The limit belongs to the process, so it is counted: the first answer raises it, the last one
    puts back what was there.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers = 0
        self._previous = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        recommended = mx.device_info().get("max_recommended_working_set_size")
        if not recommended:  # not Metal
            yield
            return
        with self._lock:
            if self._answers == 0:
                self._previous = mx.set_wired_limit(int(recommended))
            self._answers += 1
        try:
            yield
        finally:
            with self._lock:
                self._answers -= 1
                if self._answers == 0:
                    mx.synchronize()
                    mx.set_wired_limit(self._previous)


wired_limit = _WiredLimit()


class Turns:
    """A lock that is given to waiting threads in turn.

    A plain lock may be taken again and again by the thread that just released it, and an answer
    in one window of an app would starve another. Here a thread first queues at the gate: whoever
    waits there goes before the one that comes back.
    """

    def __init__(self) -> None:
        self._gate = threading.Lock()
        self._work = threading.Lock()

    def __enter__(self) -> None:
        with self._gate:
            self._work.acquire()

    def __exit__(self, *_: object) -> None:
        self._work.release()


device_turns = Turns()
"""Held while one step of one answer uses the device, so that answers of several threads take
turns token by token."""
