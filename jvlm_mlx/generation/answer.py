"""One answer in the making: encode images, read the prompt, decode token by token."""

import threading
from collections.abc import Generator
from contextlib import closing
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step

from ..errors import PromptError
from ..model import Model
from ..processing.image_processor import PromptImage
from ..processing.inputs import PreparedPrompt
from ..processing.processor import Processor
from ..progress import Progress, ProgressEvent, no_progress
from .caches import GenerationCaches
from .encoded_image import EncodedImage
from .image_encoding import model_of
from .memory import device_turns, wired_limit
from .options import GenerationOptions
from .prefill import PromptReader
from .prompt import answer_length
from .response import GenerationResponse
from .response_builder import ResponseBuilder
from .sampling import make_penalties, make_sampler


class Cancelled(Exception):  # noqa: N818 - a signal, not an error
    """Leaves the work when the caller's flag is set."""


def check_fit(model: Model, prepared: PreparedPrompt[PromptImage]) -> None:
    """Refuse a prompt that was made for another model.

    Raises:
        ImageError: another model has encoded an image; names it.
        PromptError: the model has no embedding of a token. MLX would read beyond the table.
    """
    rows = model.decoder.embedding.weight.shape[0]
    highest = int(prepared.token_ids.max(initial=0))
    if highest >= rows:
        raise PromptError(
            f"the prompt has token {highest}, but the model knows {rows} tokens; take tokenizer"
            " and weights from the same checkpoint"
        )
    encoded = [one for one in prepared.images if isinstance(one, EncodedImage)]
    if encoded:
        fingerprint = model_of(model)
        for image in encoded:
            image.check_model(fingerprint)


class Answer:
    """One answer; see `stream_generate` for the arguments.

    Args:
        model: from `load`.
        processor: from `load`.
        prepared: the prompt.
        options: of the request.
        caches: for images and prompts, or None.
        progress: told how far images and prompt have come.
        cancel: ends the answer when it is set.
        start: when the request came, by `time.perf_counter`.

    Raises:
        JvlmError: prompt, images or options do not fit the model.
    """

    def __init__(
        self,
        model: Model,
        processor: Processor,
        prepared: PreparedPrompt[PromptImage],
        options: GenerationOptions,
        *,
        caches: GenerationCaches | None,
        progress: Progress | None,
        cancel: threading.Event | None,
        start: float,
    ) -> None:
        check_fit(model, prepared)
        self._model = model
        self._prepared: PreparedPrompt[PromptImage] | None = prepared
        self._options = options
        self._progress = progress or no_progress
        self._cancel = cancel
        max_tokens = answer_length(model, len(prepared.token_ids), options)
        self._transcript = ResponseBuilder(processor, prepared, options, max_tokens, start)
        self._reader = PromptReader(
            model,
            prepared,
            options,
            caches,
            self._transcript,
            self._progress,
            self._check_cancelled,
        )

    def make_room(self) -> int:
        """Let caches let go of what has no room beside this answer; return how many tiles fit."""
        return self._reader.make_room().tile_group_size

    def pieces(self) -> Generator[GenerationResponse, None, None]:
        """Yield the pieces; see `stream_generate`."""
        whole = self._options.kv_bits is None and self._options.max_kv_size is None
        with wired_limit():
            try:
                yield from self._decode()
            except Cancelled:
                yield self._transcript.cancel()
            except GeneratorExit:
                raise
            except BaseException:
                whole = False  # a step may have stopped between two layers
                raise
            finally:
                if whole:
                    self._reader.keep(self._transcript.token_ids)
                self._reader.cache = []
                mx.clear_cache()

    def _decode(self) -> Generator[GenerationResponse, None, None]:
        prepared = self._prepared
        assert prepared is not None
        last_embedding = self._reader.read(prepared)
        steps = self._steps(prepared, last_embedding)
        # Images are not needed any more, and may be large.
        self._prepared = prepared = None
        with closing(steps):
            while True:
                self._check_cancelled()
                with device_turns:
                    token, _ = next(steps)
                piece = self._transcript.add(token)
                if piece.generation_tokens == 1:
                    tokens = piece.prompt_tokens
                    self._progress(ProgressEvent("prefill", tokens, tokens, "token"))
                if piece.finish_reason:
                    # The next step is under way already; let go of it before the last piece.
                    steps.close()
                yield piece
                if piece.finish_reason:
                    return

    def _steps(self, prepared: PreparedPrompt[PromptImage], last_embedding: mx.array) -> Any:
        """Return mlx-lm's generator of tokens."""
        prompt = prepared.token_ids
        vocab_size = self._model.config.decoder.vocab_size
        # Only the embedding is read. An id without a logit must still not reach mlx-lm, which
        # may look scores up by it.
        last = int(prompt[-1])
        return generate_step(
            mx.array([last if 0 <= last < vocab_size else 0]),
            self._model,
            max_tokens=self._transcript.max_tokens,
            sampler=make_sampler(self._options),
            logits_processors=make_penalties(self._options, prompt, vocab_size),
            prompt_cache=self._reader.cache,
            input_embeddings=last_embedding,
        )

    def _check_cancelled(self) -> None:
        if self._cancel is not None and self._cancel.is_set():
            raise Cancelled
