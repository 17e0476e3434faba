"""The prefill: a prompt goes through the decoder once, after whatever of it caches have."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from ..model import Model
from ..model.windows import feature_sources
from ..processing.image_processor import OpenedImage, PromptImage
from ..processing.inputs import PreparedPrompt
from ..progress import Progress, ProgressEvent
from . import device
from .caches import GenerationCaches, LayerState
from .finiteness import Overflow, widen
from .image_encoding import encode_opened_images
from .kv_cache import check_window, kv_group_size, make_cache, quantize
from .memory import Steps, choose_steps
from .options import GenerationOptions
from .prompt import PromptKey, prompt_key
from .response import ResponseBuilder


class Prefill:
    """Fills the KV cache of one prompt, and gives the logits of its last position.

    Methods are called on the caller's thread unless they say otherwise; each of their steps on
    the device is a job of its own, between which others take their turns.

    Args:
        model: the model.
        prepared: the prompt.
        options: of the request.
        caches: searched for images and for the longest prefix of the prompt, and added to; or
            None.
        builder: called with what was found, and when the images were done.
        progress: called with `tiles` and `prefill`.
        check: called between steps; may raise to leave the work.
        answers: how many like this one are in memory together.

    Raises:
        PromptError: the prompt does not fit into the window of `max_kv_size`.
        RequestError: the keys of this model cannot be quantized as asked, or the work does not
            fit into `max_memory`.
    """

    def __init__(
        self,
        model: Model,
        prepared: PreparedPrompt[PromptImage],
        options: GenerationOptions,
        caches: GenerationCaches | None,
        builder: ResponseBuilder,
        progress: Progress,
        check: Callable[[], None],
        *,
        answers: int = 1,
    ) -> None:
        self._model = model
        self._options = options
        self._caches = caches
        self._builder = builder
        self._progress = progress
        self._check = check
        self._group_size = None if options.kv_bits is None else kv_group_size(model, options)
        self._length = len(prepared.token_ids)
        self._has_tiles = any(isinstance(one, OpenedImage) for one in prepared.images)
        self._answers = answers
        self._choose_steps(0)  # raises, before any work is done, if it cannot fit
        check_window(self._length, options)
        self._key = None if caches is None else prompt_key(prepared)
        self.cache: list[Any] = []
        """One of mlx-lm's for each layer; has the whole prompt after `run`."""

    def make_room(self) -> Steps:
        """Return how much to compute at once; caches release what has no room beside it."""
        if self._caches is None:
            return self._choose_steps(0)
        steps = self._choose_steps(self._caches.nbytes)
        if steps.cache_bytes is not None:
            self._caches.shrink(steps.cache_bytes)
        return steps

    def run(self, prepared: PreparedPrompt[PromptImage]) -> mx.array:
        """Return the logits (1, vocabulary) of the last position.

        Raises:
            CheckpointError: they are not finite, in a wider type than float16 either.
        """
        while True:
            try:
                return self._run(prepared)
            except Overflow:
                device.run(partial(widen, self._model, "decoder", "lm_head"))  # raises next time

    def keep(self, answer: Sequence[int] = ()) -> None:
        """Put the KV cache into the caches, for prompts with the same prefix. On the worker.

        Args:
            answer: the tokens that follow the prompt in the KV cache.
        """
        if self._caches is None or self._key is None or not self.cache:
            return
        # An answer that was left early may have fewer tokens in some layers.
        filled = min(layer.offset for layer in self.cache)
        if filled <= self._builder.cached_tokens:
            return
        layers = [LayerState(layer.keys, layer.values) for layer in self.cache]
        mx.eval(layers)
        self._caches.prefixes.insert(
            self._caches.key(self._model), self._key.extended(answer).within(filled), layers
        )

    def _run(self, prepared: PreparedPrompt[PromptImage]) -> mx.array:
        key, layers = self._stored_prefix()
        steps = self.make_room()  # what is stored of this prompt is at hand
        self.cache = make_cache(self._model, self._length, self._options)
        cached = key.num_tokens
        if cached:
            device.run(partial(self._reuse, cached, layers))
        layers.clear()
        self._builder.cached_tokens = cached
        embeddings = self._embed(prepared, cached, steps.tile_group_size)
        self._builder.images_done()
        logits = self._decode_prompt(embeddings, steps.prefill_step_size)
        if not self._options.has_plain_cache:
            device.run(self._finish_special_cache)
        return logits

    def _finish_special_cache(self) -> None:
        """Store a prefix at full precision and in full, while that is what there is.

        The prefill itself used fused attention; only then a cache is quantized, where mlx-lm
        would wait for 5,000 tokens. A rotating cache has not dropped anything yet.
        """
        self.keep()
        if self._options.kv_bits is not None and self._group_size is not None:
            quantize(self.cache, self._options.kv_bits, self._group_size)

    def _choose_steps(self, cached_bytes: int) -> Steps:
        return choose_steps(
            self._model,
            self._options,
            self._length,
            has_tiles=self._has_tiles,
            answers=self._answers,
            cached_bytes=cached_bytes,
        )

    def _stored_prefix(self) -> tuple[PromptKey, list[LayerState]]:
        """Return the longest stored prefix, empty if there is none."""
        nothing: tuple[PromptKey, list[LayerState]] = (PromptKey((), ()), [])
        if self._caches is None or self._key is None:
            return nothing
        key, layers = self._caches.prefixes.fetch(self._caches.key(self._model), self._key)
        # The decoder may have changed to a wider type since.
        return (key, layers) if layers and layers[0].keys.dtype == self._model.dtype else nothing

    def _reuse(self, cached: int, layers: Sequence[LayerState]) -> None:
        """Fill the cache with the stored prefix of `cached` tokens."""
        for cache, layer in zip(self.cache, layers, strict=True):
            cache.update_and_fetch(layer.keys[..., :cached, :], layer.values[..., :cached, :])
        mx.eval([cache.state for cache in self.cache])

    def _embed(
        self, prepared: PreparedPrompt[PromptImage], cached: int, tile_group_size: int
    ) -> mx.array:
        """Return the embeddings of the tokens after the first `cached`, images merged in.

        (1, L - cached, hidden_size). Images among the cached tokens are not needed any more.
        """
        ids = prepared.token_ids[cached:]
        images = [
            (start - cached, image)
            for start, image in zip(prepared.starts, prepared.images, strict=True)
            if start >= cached
        ]
        features = encode_opened_images(
            self._model,
            [image for _, image in images],
            self._caches,
            tile_group_size,
            self._progress,
            self._check,
        )
        # (T, W) positions of each image, negative where a window is dropped -> (N,) of all
        positions = [
            start + image.window_positions[image.window_positions >= 0] for start, image in images
        ]

        def merge() -> mx.array:
            embeddings = self._model.decoder.embed(ids[None])
            if features:
                kept = np.concatenate(positions)
                sources = feature_sources(np.zeros_like(kept), kept, (1, len(ids)))
                embeddings = self._model.merge(embeddings, mx.concatenate(features), sources)
            mx.eval(embeddings)
            return embeddings

        return device.run(merge)

    def _decode_prompt(self, embeddings: mx.array, step: int) -> mx.array:
        length = embeddings.shape[1]
        cached = self._length - length
        self._report(cached)
        logits = None
        for begin in range(0, length, step):
            end = min(begin + step, length)
            logits = device.run(partial(self._decode_chunk, embeddings, begin, end))
            self._report(cached + end)
        assert logits is not None  # a prefix never covers the whole prompt
        return logits

    def _decode_chunk(self, embeddings: mx.array, begin: int, end: int) -> mx.array | None:
        """Run tokens `begin` to `end` of (1, L, hidden_size) through the decoder.

        The last chunk gives logits (1, vocabulary) of its last position.
        """
        hidden = self._model.decoder(embeddings[:, begin:end], self.cache)
        states = [cache.state for cache in self.cache]
        if end < embeddings.shape[1]:
            # The last layer's output is not evaluated: its KV cache is enough.
            mx.eval(states)
            mx.clear_cache()
            return None
        # (1, n, D) -> (1, D) -> (1, V): the head reads the last position alone.
        logits = self._model.head(hidden[:, -1])
        finite = mx.all(mx.isfinite(logits))
        mx.eval(logits, finite, states)  # together, so the check costs no wait
        if not finite.item():
            raise Overflow
        return logits

    def _report(self, done: int) -> None:
        self._progress(ProgressEvent("prefill", done, self._length, "token"))
        self._check()
