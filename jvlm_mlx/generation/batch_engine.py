"""Answers many requests with mlx-lm's continuous batching."""

import dataclasses
import logging
import threading
import time
from collections.abc import Generator, Iterable, Mapping
from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator

from ..errors import JvlmError, RequestError
from ..model import Model
from ..processing.image_processor import PromptImage
from ..processing.inputs import PreparedPrompt
from ..processing.processor import Processor
from .answer import Answer, Cancelled, check_fit
from .caches import GenerationCaches
from .memory import device_turns, wired_limit
from .options import GenerationOptions
from .prefill import PromptReader
from .prompt import answer_length, prepare_prompt
from .requests import BatchRequest, BatchResponse
from .response import GenerationResponse, GenerationResult
from .response_builder import ResponseBuilder
from .sampling import LogitsProcessor, make_penalties, make_sampler

logger = logging.getLogger(__name__)

DEFAULT_BATCH_SIZE = 8
_OPTION_NAMES = {field.name for field in dataclasses.fields(GenerationOptions)}


def batch_generate(
    model: Model,
    processor: Processor,
    requests: Iterable[BatchRequest | Mapping[str, Any]],
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    caches: GenerationCaches | None = None,
    cancel: threading.Event | None = None,
    **options: Any,
) -> Generator[BatchResponse, None, None]:
    """Answer many requests, several at a time.

    Each prompt is read alone; then up to `batch_size` answers grow together, and as one ends
    the next request takes its place. The tokens are those of `generate`. A request that fails
    becomes an answer with an error, and the others go on.

    Requests with `max_kv_size` or `kv_bits` are answered one at a time, for mlx-lm does not
    batch such caches.

    Args:
        model: from `load`.
        processor: from `load`.
        requests: `BatchRequest`s, or mappings with `prompt`, `images`, `system` and options;
            taken one by one, as there is room.
        batch_size: most answers that grow together; device memory grows with it.
        caches: worth it if requests share images or beginnings.
        cancel: set it, from any thread, to stop; answers that are not finished are dropped.
        **options: of all requests that do not say otherwise, see `GenerationOptions`.

    Yields:
        Answers as they are finished, with the index of their request.

    Raises:
        RequestError: an option or the batch size is out of range.
    """
    if batch_size < 1:
        raise RequestError(f"batch_size is {batch_size}; it must be at least 1")
    GenerationOptions(**options)
    return _Batch(model, processor, batch_size, caches, cancel, options).answers(requests)


class _NoPenalties(tuple[LogitsProcessor, ...]):
    """Empty, but true.

    mlx-lm 0.31 forgets to drop the processors of a finished row from its list while all of
    them are false, and from then on rows have those of others.
    """

    def __bool__(self) -> bool:
        return True


def _greedy(logprobs: mx.array) -> mx.array:
    """Take the likeliest tokens. One function for all rows, so that they are drawn together."""
    return mx.argmax(logprobs, axis=-1)


@dataclasses.dataclass
class _Row:
    """An answer that is growing."""

    index: int
    transcript: ResponseBuilder
    pieces: list[GenerationResponse]


class _Batch:
    def __init__(
        self,
        model: Model,
        processor: Processor,
        batch_size: int,
        caches: GenerationCaches | None,
        cancel: threading.Event | None,
        options: dict[str, Any],
    ) -> None:
        self._model = model
        self._processor = processor
        self._batch_size = batch_size
        self._caches = caches
        self._cancel = cancel
        self._options = options
        self._rows: dict[int, _Row] = {}
        """By mlx-lm's number of the sequence."""

    def answers(
        self, requests: Iterable[BatchRequest | Mapping[str, Any]]
    ) -> Generator[BatchResponse, None, None]:
        waiting = enumerate(requests)
        with wired_limit():
            batch = BatchGenerator(
                self._model,
                completion_batch_size=self._batch_size,
                prefill_batch_size=self._batch_size,
                sampler=_greedy,
            )
            try:
                more = True
                while more or self._rows:
                    while more and len(self._rows) < self._batch_size:
                        self._check_cancelled()
                        following = next(waiting, None)
                        if following is None:
                            more = False
                        elif (answer := self._begin(batch, *following)) is not None:
                            yield answer
                    self._check_cancelled()
                    if self._rows:
                        yield from self._step(batch)
            except Cancelled:
                return
            finally:
                self._rows.clear()
                batch.close()
                mx.clear_cache()

    def _step(self, batch: BatchGenerator) -> list[BatchResponse]:
        """Let every answer grow by a token; return those that end."""
        with device_turns:
            _, responses = batch.next()
        finished, left = [], []
        for response in responses:
            row = self._rows[response.uid]
            row.pieces.append(row.transcript.add(response.token))
            if row.pieces[-1].finish_reason is None:
                continue
            finished.append(_answer(row.index, row.pieces))
            del self._rows[response.uid]
            if response.finish_reason is None:
                left.append(response.uid)
        if left:
            with device_turns:
                batch.remove(left)
        return finished

    def _begin(
        self, batch: BatchGenerator, index: int, request: BatchRequest | Mapping[str, Any]
    ) -> BatchResponse | None:
        """Read a prompt and let its answer join the batch; return what is finished already."""
        start = time.perf_counter()
        try:
            asked = BatchRequest.of(request)
            options = self._read_options(asked)
            prepared = prepare_prompt(
                self._processor, asked.prompt, asked.images, asked.system, options
            )
            if options.kv_bits is not None or options.max_kv_size is not None:
                return _answer(index, self._alone(prepared, options, start))
            self._join(batch, index, prepared, options, start)
            return None
        except Cancelled:
            raise
        except JvlmError as error:
            return BatchResponse(index=index, result=None, error=str(error))
        except Exception as error:  # whatever it is, the other requests go on
            logger.exception("request %d fails", index)
            said = " ".join(str(error).split())
            return BatchResponse(index=index, result=None, error=f"{type(error).__name__}: {said}")

    def _read_options(self, request: BatchRequest) -> GenerationOptions:
        unknown = sorted(set(request.options) - _OPTION_NAMES)
        if unknown:
            raise RequestError(f"there is no option {unknown[0]!r}")
        return GenerationOptions(**{**self._options, **request.options})

    def _alone(
        self, prepared: PreparedPrompt[PromptImage], options: GenerationOptions, start: float
    ) -> list[GenerationResponse]:
        answer = Answer(
            self._model,
            self._processor,
            prepared,
            options,
            caches=self._caches,
            progress=None,
            cancel=self._cancel,
            start=start,
        )
        pieces = list(answer.pieces())
        self._check_cancelled()
        return pieces

    def _join(
        self,
        batch: BatchGenerator,
        index: int,
        prepared: PreparedPrompt[PromptImage],
        options: GenerationOptions,
        start: float,
    ) -> None:
        check_fit(self._model, prepared)
        prompt = prepared.token_ids
        max_tokens = answer_length(self._model, len(prompt), options)
        transcript = ResponseBuilder(self._processor, prepared, options, max_tokens, start)
        reader = PromptReader(
            self._model,
            prepared,
            options,
            self._caches,
            transcript,
            lambda *_: None,
            self._check_cancelled,
            answers=self._batch_size,
        )
        reader.read(prepared)
        reader.keep()
        penalties = make_penalties(options, prompt, self._model.config.decoder.vocab_size)
        with device_turns:
            # mlx-lm reads the last token by its id. That is all there is to know of it: even a
            # image ends with a token that carries no feature.
            (uid,) = batch.insert(
                [[int(prompt[-1])]],
                max_tokens=[max_tokens],
                caches=[reader.cache],
                samplers=[_greedy if options.temperature == 0 else make_sampler(options)],
                logits_processors=[penalties or _NoPenalties()],
            )
        self._rows[uid] = _Row(index, transcript, [])

    def _check_cancelled(self) -> None:
        if self._cancel is not None and self._cancel.is_set():
            raise Cancelled


def _answer(index: int, pieces: list[GenerationResponse]) -> BatchResponse:
    return BatchResponse(index=index, result=GenerationResult.collect(pieces), error=None)
