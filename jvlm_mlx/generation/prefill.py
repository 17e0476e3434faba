"""The prefill: a prompt goes through the decoder once, after whatever of it caches have."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import numpy.typing as npt

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


class _Inputs(NamedTuple):
    """What follows a stored prefix."""

    ids: npt.NDArray[np.integer]
    """(L,)."""
    features: list[mx.array]
    """(N, hidden_size) of each image."""
    positions: Sequence[npt.NDArray[np.integer]]
    """(N,) of each image: where its features are among the tokens."""


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
        cached = self._builder.cached_tokens = key.num_tokens
        inputs = self._encode(prepared, cached, steps.tile_group_size)
        self._builder.images_done()
        step, length = steps.prefill_step_size, self._length - cached
        self._report(cached)

        def begin() -> tuple[mx.array, mx.array | None]:
            """Return all embeddings, and logits if one step is enough: a single wait then."""
            self._reuse(cached, layers)
            layers.clear()
            if inputs.features:
                mx.clear_cache()  # the prompt cannot use most of what the tower's results took
            embeddings = merged_embeddings(self._model, *inputs)
            inputs.features.clear()
            if length > step:
                mx.eval(embeddings)  # without what they are made of
            return embeddings, self._decode_chunk(embeddings, 0, min(step, length))

        embeddings, logits = device.run(begin)
        self._report(cached + min(step, length))
        for start in range(step, length, step):
            end = min(start + step, length)
            logits = device.run(partial(self._decode_chunk, embeddings, start, end))
            self._report(cached + end)
        assert logits is not None  # a prefix never covers the whole prompt
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
        """Fill the cache with the stored prefix of `cached` tokens; evaluated with what follows."""
        for cache, layer in zip(self.cache, layers, strict=False):
            cache.update_and_fetch(layer.keys[..., :cached, :], layer.values[..., :cached, :])

    def _encode(
        self, prepared: PreparedPrompt[PromptImage], cached: int, tile_group_size: int
    ) -> _Inputs:
        """Return the tokens after the first `cached`, and features of the images among them.

        Images among the cached tokens are not needed any more.
        """
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
        positions = feature_positions(images)
        return _Inputs(prepared.token_ids[cached:], features, positions)

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


def feature_positions(
    placed: Iterable[tuple[int, PromptImage]],
) -> list[npt.NDArray[np.integer]]:
    """Return the positions (N,) of each image's features, of images and where they start."""
    # (T, W) positions of each image, negative where a window is dropped -> (N,)
    return [start + image.window_positions[image.window_positions >= 0] for start, image in placed]


def merged_embeddings(
    model: Model,
    token_ids: npt.NDArray[np.integer],
    features: list[mx.array],
    positions: Sequence[npt.NDArray[np.integer]],
) -> mx.array:
    """Return embeddings (1, L, hidden_size) of tokens (L,), with images merged in.

    Args:
        model: that the features are of.
        token_ids: with those of the images.
        features: (N, hidden_size) of each image.
        positions: (N,) of each image, from `feature_positions`.
    """
    embeddings = model.decoder.embed(token_ids[None])
    if not features:
        return embeddings
    kept = np.concatenate(positions)
    sources = feature_sources(np.zeros_like(kept), kept, (1, len(token_ids)))
    return model.merge(embeddings, mx.concatenate(features), sources)
