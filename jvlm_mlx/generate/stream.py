"""Answers as streams: encode pictures, read the prompt, decode token by token."""

import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.generate import generate_step

from ..model import Model
from ..processor import Processor
from .memory import device_turns, kv_group_size, make_cache, wired_limit
from .options import GenerationOptions
from .prompt import PreparedPrompt, Prompt, answer_length, prepare_prompt
from .results import GenerationPiece, GenerationResult
from .sampling import make_penalties, make_sampler
from .text import AnswerText

Progress = Callable[[str, int, int], None]
"""Called with a stage (`tiles` or `prompt`), how many are done, and how many there are."""


class _Cancelled(Exception):  # noqa: N818 - a signal, not an error
    """Leaves the prefill when the caller's flag is set."""


def stream_generate(
    model: Model,
    processor: Processor,
    prompt: Prompt,
    images: Any = None,
    *,
    system: str | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
    **options: Any,
) -> Generator[GenerationPiece, None, None]:
    """Answer a prompt, token by token.

    Everything that can be wrong with the request is checked, and pictures are opened and cut,
    before this returns; the model starts to work with the first piece. Closing the iterator, or
    setting `cancel`, stops the work within one token (while pictures are encoded or the prompt
    is read: within one group of tiles or one step of the prefill) and frees the cache.

    May be called from several threads: they take turns on the device, token by token.

    Args:
        model: from `load`.
        processor: from `load`.
        prompt: a question, or messages with roles and content parts, or what
            `processor.apply_chat_template` returned.
        images: a picture or a list: path, URL, data URI, bytes, file object, PIL image or array.
            In front of the words of a question; for messages, they fill image parts in order.
        system: a system message in front.
        progress: told how far pictures and prompt have come.
        cancel: set it, from any thread, to end the answer; its last piece then has the finish
            reason `cancelled`.
        **options: see `GenerationOptions`.

    Yields:
        One piece for each token; the last one has a finish reason.

    Raises:
        JvlmError: bad options, prompt or pictures, with one line that says what to do.
    """
    start = time.perf_counter()
    request = GenerationOptions(**options)
    prepared = prepare_prompt(processor, prompt, images, system, request)
    answer = _Answer(model, processor, prepared, request, progress, cancel, start)
    return answer.pieces()


def generate(
    model: Model,
    processor: Processor,
    prompt: Prompt,
    images: Any = None,
    **arguments: Any,
) -> GenerationResult:
    """Answer a prompt and return the whole; arguments and errors as `stream_generate`."""
    return GenerationResult.collect(
        list(stream_generate(model, processor, prompt, images, **arguments))
    )


class _Answer:
    """One answer in the making."""

    def __init__(
        self,
        model: Model,
        processor: Processor,
        prepared: PreparedPrompt,
        options: GenerationOptions,
        progress: Progress | None,
        cancel: threading.Event | None,
        start: float,
    ) -> None:
        self._model = model
        self._prepared = prepared
        self._options = options
        self._progress = progress or (lambda *_: None)
        self._cancel = cancel
        self._start = start
        self._max_tokens = answer_length(model, len(prepared.token_ids), options)
        self._cache = make_cache(model, len(prepared.token_ids), options)
        self._kv_group_size = 64 if options.kv_bits is None else kv_group_size(model, options)
        self._text = AnswerText(processor.tokenizer, options.stop)
        self._stop_token_ids = (
            processor.tokenizer.stop_token_ids
            if options.stop_token_ids is None
            else options.stop_token_ids
        )
        self._tokens = 0
        self._image_seconds = self._prompt_seconds = self._first_token = 0.0

    def pieces(self) -> Generator[GenerationPiece, None, None]:
        """Yield the pieces; see `stream_generate`."""
        with wired_limit():
            try:
                yield from self._decode()
            except _Cancelled:
                yield self._piece(None, self._text.finish(), "cancelled")
            finally:
                self._cache = []
                mx.clear_cache()

    def _decode(self) -> Generator[GenerationPiece, None, None]:
        embeddings = self._encode_prompt()
        with closing(self._steps(embeddings)) as steps:
            del embeddings
            while True:
                self._check_cancelled()
                with device_turns:
                    token, _ = next(steps)
                self._tokens += 1
                if self._tokens == 1:
                    self._first_token = time.perf_counter()
                reason = None
                if token in self._stop_token_ids:
                    text, reason = self._text.finish(), "stop"
                else:
                    text = self._text.add(token)
                    if self._text.stopped:
                        reason = "stop"
                    elif self._tokens == self._max_tokens:
                        text, reason = text + self._text.finish(), "length"
                if reason:
                    # The next step is under way already; let go of it before the last piece.
                    steps.close()
                yield self._piece(token, text, reason)
                if reason:
                    return

    def _encode_prompt(self) -> mx.array:
        """Return the prompt's embeddings (L, hidden_size), pictures merged in."""
        model, inputs = self._model, self._prepared.inputs
        with device_turns:
            embeddings = model.decoder.embed(mx.array(inputs.input_ids))
        if inputs.pixel_values is not None:
            assert inputs.image_masks is not None
            assert inputs.image_input_idx is not None
            plan = model.plan(
                inputs.image_input_idx, inputs.input_ids.shape[1], self._options.tile_group_size
            )
            groups = model.encode_groups(inputs.pixel_values, inputs.image_masks, plan)
            done, total = 0, sum(len(group.tiles) for group in plan.groups)
            features = []
            self._progress("tiles", 0, total)
            for group in plan.groups:
                self._check_cancelled()
                with device_turns:
                    features.append(next(groups))
                    mx.eval(features[-1])
                done += len(group.tiles)
                self._progress("tiles", done, total)
            with device_turns:
                embeddings = model.merge(embeddings, mx.concatenate(features), plan.sources)
                mx.eval(embeddings)
        self._image_seconds = time.perf_counter() - self._start
        return embeddings[0]

    def _steps(self, embeddings: mx.array) -> Any:
        """Return mlx-lm's generator of tokens."""
        options, prompt = self._options, self._prepared.token_ids
        vocab_size = self._model.settings.decoder.vocab_size
        # Only embeddings are read. Ids without a logit must still not reach mlx-lm, which may
        # look scores up by them.
        ids = mx.array(np.where((prompt >= 0) & (prompt < vocab_size), prompt, 0))
        return generate_step(
            ids,
            self._model,
            max_tokens=self._max_tokens,
            sampler=make_sampler(options),
            logits_processors=make_penalties(options, prompt, vocab_size),
            prompt_cache=self._cache,
            prefill_step_size=options.prefill_step_size,
            kv_bits=options.kv_bits,
            kv_group_size=self._kv_group_size,
            # mlx-lm starts at 5,000 tokens unless told otherwise. The prompt is read at full
            # precision with fused attention, and quantized before the first token is decoded.
            quantized_kv_start=len(prompt) - 1,
            prompt_progress_callback=self._prompt_progress,
            input_embeddings=embeddings,
        )

    def _prompt_progress(self, done: int, total: int) -> None:
        self._progress("prompt", done, total)
        self._check_cancelled()

    def _check_cancelled(self) -> None:
        if self._cancel is not None and self._cancel.is_set():
            raise _Cancelled

    def _piece(self, token: int | None, text: str, reason: str | None) -> GenerationPiece:
        now = time.perf_counter()
        first_token_seconds = (self._first_token or now) - self._start
        prompt_seconds = first_token_seconds - self._image_seconds
        prompt_tokens = len(self._prepared.token_ids)
        return GenerationPiece(
            text=text,
            token=token,
            prompt_tokens=prompt_tokens,
            image_tokens=self._prepared.image_tokens,
            tiles=self._prepared.tiles,
            generation_tokens=self._tokens,
            first_token_seconds=first_token_seconds,
            image_seconds=self._image_seconds,
            prompt_tps=prompt_tokens / prompt_seconds if self._tokens else 0.0,
            generation_tps=(
                (self._tokens - 1) / (now - self._first_token) if self._tokens > 1 else 0.0
            ),
            peak_memory=mx.get_peak_memory() / 1e9,
            finish_reason=reason,
        )
