"""Reads a prompt into a KV cache, with whatever caches know of it."""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.generate import maybe_quantize_kv_cache

from ..model import Model
from ..processing.image_processor import OpenedImage, PromptImage
from ..processing.inputs import PreparedPrompt
from ..progress import Progress, ProgressEvent
from .budget import Steps, choose_steps
from .caches import GenerationCaches, LayerState
from .image_encoding import encode_opened_images, model_of
from .memory import device_turns, kv_group_size, make_cache
from .options import GenerationOptions
from .prompt import prompt_key
from .prompt_key import PromptKey
from .response_builder import ResponseBuilder


class PromptReader:
    """Reads one prompt up to its last token.

    Args:
        model: the model.
        prepared: the prompt.
        options: of the request.
        caches: searched for images and for the prompt's beginning, and added to; or None.
        transcript: told what was found, and when the images were done.
        progress: told about `tiles` and `prefill`.
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
        transcript: ResponseBuilder,
        progress: Progress,
        check: Callable[[], None],
        *,
        answers: int = 1,
    ) -> None:
        self._model = model
        self._options = options
        self._caches = caches
        self._transcript = transcript
        self._progress = progress
        self._check = check
        self._group_size = None if options.kv_bits is None else kv_group_size(model, options)
        self._length = len(prepared.token_ids)
        self._has_tiles = any(isinstance(one, OpenedImage) for one in prepared.images)
        self._answers = answers
        self._choose_steps(0)  # raises, before any work is done, if it cannot fit
        self._key = None if caches is None else prompt_key(prepared)
        self.cache: list[Any] = make_cache(model, self._length, options)
        """One of mlx-lm's for each layer; grows while the prompt is read."""

    def make_room(self) -> Steps:
        """Return how much to compute at once; caches let go of what has no room beside it."""
        if self._caches is None:
            return self._choose_steps(0)
        steps = self._choose_steps(self._caches.nbytes)
        if steps.cache_bytes is not None:
            self._caches.shrink(steps.cache_bytes)
        return steps

    def read(self, prepared: PreparedPrompt[PromptImage]) -> mx.array:
        """Read all tokens but the last; return that one's embedding, (1, hidden_size)."""
        key, layers = self._known()
        steps = self.make_room()  # what is known of this prompt is at hand
        known = self._take_over(key, layers)
        layers.clear()
        self._transcript.cached_tokens = known
        embeddings = self._embed(prepared, known, steps.tile_group_size)
        self._transcript.images_done()
        self._prefill(embeddings, steps.prefill_step_size)
        if self._options.kv_bits is not None:
            # What others may take over is at full precision, as it is in a fresh run: the
            # prompt is read with fused attention and quantized before the first token is
            # decoded, where mlx-lm would wait for 5,000 tokens.
            self.keep()
            maybe_quantize_kv_cache(
                self.cache,
                quantized_kv_start=0,
                kv_group_size=self._group_size,
                kv_bits=self._options.kv_bits,
            )
        elif self._options.max_kv_size is not None:
            self.keep()  # while nothing has been dropped
        return embeddings[-1:]

    def keep(self, answer: Sequence[int] = ()) -> None:
        """Put what has been read into the caches, for prompts that begin in the same way.

        Args:
            answer: the tokens that the model read after the prompt.
        """
        # An answer that was left early may have fewer tokens in some layers.
        read = min(layer.offset for layer in self.cache)
        if self._caches is None or self._key is None or read <= self._transcript.cached_tokens:
            return
        with device_turns:
            layers = [LayerState(layer.keys, layer.values) for layer in self.cache]
            mx.eval(layers)
        self._caches.prefixes.insert(
            model_of(self._model), self._key.extended(answer).within(read), layers
        )

    def _choose_steps(self, cached_bytes: int) -> Steps:
        return choose_steps(
            self._model,
            self._options,
            self._length,
            has_tiles=self._has_tiles,
            answers=self._answers,
            cached_bytes=cached_bytes,
        )

    def _known(self) -> tuple[PromptKey, list[LayerState]]:
        """Return the longest known beginning, empty if there is none."""
        if self._caches is None or self._key is None:
            return PromptKey((), ()), []
        return self._caches.prefixes.fetch(model_of(self._model), self._key)

    def _take_over(self, key: PromptKey, layers: list[LayerState]) -> int:
        """Fill the cache with a known beginning; return its number of tokens."""
        known = key.num_tokens
        if known:
            with device_turns:
                for cache, layer in zip(self.cache, layers, strict=True):
                    cache.update_and_fetch(layer.keys[..., :known, :], layer.values[..., :known, :])
                mx.eval([cache.state for cache in self.cache])
        return known

    def _embed(
        self, prepared: PreparedPrompt[PromptImage], known: int, tile_group_size: int
    ) -> mx.array:
        """Return the embeddings of the tokens after the first `known`, images merged in.

        (L - known, hidden_size). Images among the known tokens are not needed any more.
        """
        model, ids = self._model, prepared.token_ids[known:]
        images = [
            (start - known, image)
            for start, image in zip(prepared.starts, prepared.images, strict=True)
            if start >= known
        ]
        features = encode_opened_images(
            model,
            [image for _, image in images],
            self._caches,
            tile_group_size,
            self._progress,
            self._check,
        )
        sources = np.full((1, len(ids)), -1, np.int32)
        row = 0
        for start, image in images:
            positions = image.window_positions  # (T, W)
            offsets = positions[positions >= 0]  # of each feature, from the first token
            sources[0, start + offsets] = np.arange(row, row + len(offsets))
            row += len(offsets)
        with device_turns:
            embeddings = model.decoder.embed(mx.array(ids[None]))
            if features:
                embeddings = model.merge(embeddings, mx.concatenate(features), sources)
            mx.eval(embeddings)
        return embeddings[0]

    def _prefill(self, embeddings: mx.array, step: int) -> None:
        done = self._length - len(embeddings)
        self._progress(ProgressEvent("prefill", done, self._length, "token"))
        self._check()
        for begin in range(0, len(embeddings) - 1, step):
            end = min(begin + step, len(embeddings) - 1)
            with device_turns:
                self._model.decoder(embeddings[None, begin:end], self.cache)
                # The last layer's output is not evaluated: its keys and values are enough.
                mx.eval([cache.state for cache in self.cache])
                mx.clear_cache()
            self._progress(ProgressEvent("prefill", done + end, self._length, "token"))
            self._check()
