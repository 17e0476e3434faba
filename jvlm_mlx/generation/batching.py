"""Many requests at a time: their answers grow together, and the next is prepared meanwhile."""

import logging
import threading
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import mlx.core as mx

from ..config.json_file import quoted
from ..errors import JvlmError, RequestError
from ..model import Model
from ..processing.image_processor import PromptImage
from ..processing.inputs import PreparedPrompt
from ..processing.processor import Processor, Prompt
from ..progress import no_progress
from . import device
from .answer import Answer, Cancelled, check_cancelled, check_fit, make_row
from .caches import GenerationCaches
from .engine import Engine
from .image_encoding import InBackground
from .json_grammar import with_grammar
from .memory import wired_limit
from .options import GenerationOptions
from .prefill import Prefill
from .prompt import answer_length, prepare_prompt
from .requests import AnyRequest, BatchRequest, BatchResponse, with_images
from .response import GenerationResponse, GenerationResult, ResponseBuilder
from .row import Row

logger = logging.getLogger(__name__)

DEFAULT_BATCH_SIZE = 8


def batch_generate(
    model: Model,
    processor: Processor,
    requests: Iterable[BatchRequest | Mapping[str, Any] | Prompt] | None = None,
    images: Sequence[Any] | None = None,
    *,
    prompts: Sequence[Prompt] | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    caches: GenerationCaches | None = None,
    cancel: threading.Event | None = None,
    options: GenerationOptions | Mapping[str, Any] | None = None,
    **overrides: Any,
) -> Generator[BatchResponse, None, None]:
    """Answer many requests, several at a time.

    Each prompt has a prefill of its own; then up to `batch_size` answers grow together, and as
    one ends the next request takes its place, whose images are opened meanwhile. The tokens are
    those of `generate`. A request that fails becomes an answer with an error, and the others go
    on.

    Requests with `max_kv_size` or `kv_bits` are answered one at a time, for mlx-lm does not
    batch such KV caches.

    Args:
        model: from `load`.
        processor: from `load`.
        requests: `BatchRequest`s, or mappings with `prompt`, `images`, `system` and options, or
            bare prompts; taken one by one, as there is room.
        images: for bare prompts, an image or a list of images, or None, for each.
        prompts: bare prompts, instead of `requests`.
        batch_size: most answers that grow together; device memory grows with it.
        caches: worth it if requests share images or prefixes.
        cancel: set it, from any thread, to stop; answers that are not finished are dropped.
        options: of all requests that do not say otherwise.
        **overrides: the same, one by one, by the names of `GenerationOptions`.

    Yields:
        Answers as they are finished, with the index of their request.

    Raises:
        RequestError: an option or the batch size is out of range.
    """
    given = GenerationOptions.of(options, overrides, processor.generation_defaults)
    if (requests is None) == (prompts is None):
        raise RequestError("give either requests or prompts")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise RequestError(f"batch_size is {quoted(batch_size)}; it must be at least 1")
    following = requests if prompts is None else prompts
    assert following is not None
    if isinstance(following, str | Mapping):
        raise RequestError("requests must be a list; for one prompt, see generate")
    if images is not None:
        following = with_images(list(following), images)
    return _Batch(model, processor, batch_size, caches, cancel, given).responses(following)


@dataclass(frozen=True)
class _Prepared:
    """A request whose images are opened."""

    index: int
    options: GenerationOptions
    prompt: PreparedPrompt[PromptImage]
    start: float


@dataclass(frozen=True, eq=False)
class _Growing:
    """An answer that is being decoded."""

    index: int
    builder: ResponseBuilder
    responses: list[GenerationResponse] = field(default_factory=list)


class _Batch:
    """See `batch_generate`.

    Args:
        model: from `load`.
        processor: from `load`.
        batch_size: most answers that grow together.
        caches: for images and prompts, or None.
        cancel: ends the batch when it is set.
        options: of all requests that do not say otherwise.
    """

    def __init__(
        self,
        model: Model,
        processor: Processor,
        batch_size: int,
        caches: GenerationCaches | None,
        cancel: threading.Event | None,
        options: GenerationOptions,
    ) -> None:
        device.take_over(model)
        self._model = model
        self._processor = processor
        self._batch_size = batch_size
        self._caches = caches
        self._cancel = cancel
        self._check_cancelled = partial(check_cancelled, cancel)
        self._options = options
        self._wired = options.wired_limit
        self._holds_wired_limit = False
        self._engine = Engine(model)
        self._growing: dict[Row, _Growing] = {}

    def responses(self, requests: Iterable[AnyRequest]) -> Generator[BatchResponse, None, None]:
        """Yield an answer for each request, as they are finished."""
        waiting = enumerate(requests)
        preparing: InBackground[_Prepared | BatchResponse] | None = None
        more = True
        try:
            device.run(self._hold_wired_limit)
            while more or preparing or self._growing:
                self._check_cancelled()
                if preparing is None and more and len(self._growing) < self._batch_size:
                    preparing, more = self._prepare_next(waiting)
                # Where nothing grows yet, or the images are ready, the next answer begins.
                if preparing is not None and (preparing.done or not self._growing):
                    prepared = preparing.result()
                    preparing = None
                    if more and len(self._growing) + 1 < self._batch_size:
                        # The CPU opens the next images while the device encodes these.
                        preparing, more = self._prepare_next(waiting)
                    response = self._begin(prepared)
                    if response is not None:
                        yield response
                elif self._growing:
                    yield from self._step()
        except Cancelled:
            device.run(self._release)
        except BaseException:
            device.post(self._release)
            raise
        else:
            device.run(self._release)

    def _prepare_next(
        self, waiting: Iterable[tuple[int, AnyRequest]]
    ) -> tuple[InBackground[_Prepared | BatchResponse] | None, bool]:
        """Start with the next request; return it, and whether there may be more."""
        following = next(iter(waiting), None)
        if following is None:
            return None, False
        return InBackground(partial(self._prepare, *following)), True

    def _prepare(self, index: int, request: AnyRequest) -> _Prepared | BatchResponse:
        """Check a request and open its images; in a thread beside the batch."""
        start = time.perf_counter()

        def prepare() -> _Prepared:
            asked = BatchRequest.of(request)
            options = GenerationOptions.of(self._options, asked.options)
            options = with_grammar(options, self._model, self._processor)
            prompt = prepare_prompt(
                self._processor,
                asked.prompt,
                asked.images,
                asked.system,
                options,
                model=self._model,
                known=None if self._caches is None else self._caches.images,
            )
            return _Prepared(index, options, prompt, start)

        return _guarded(index, prepare)

    def _begin(self, prepared: _Prepared | BatchResponse) -> BatchResponse | None:
        """Encode images, prefill, and let the answer join; return what is finished already."""
        if isinstance(prepared, BatchResponse):
            return prepared
        return _guarded(prepared.index, partial(self._join, prepared))

    def _join(self, prepared: _Prepared) -> BatchResponse | None:
        options, prompt = prepared.options, prepared.prompt
        if not options.has_plain_cache:
            return self._alone(prepared)
        check_fit(self._model, prompt)
        max_tokens = answer_length(self._model, len(prompt.token_ids), options)
        builder = ResponseBuilder(self._processor, prompt, options, max_tokens, prepared.start)
        prefill = Prefill(
            self._model,
            prompt,
            options,
            self._caches,
            builder,
            no_progress,
            self._check_cancelled,
            answers=self._batch_size,
        )
        logits = prefill.run(prompt)

        def join() -> Row:
            prefill.keep()
            row = make_row(self._model, prompt, options, max_tokens)
            self._engine.add([row], prefill.cache, logits)
            return row

        self._growing[device.run(join)] = _Growing(prepared.index, builder)
        return None

    def _alone(self, prepared: _Prepared) -> BatchResponse:
        answer = Answer(
            self._model,
            self._processor,
            prepared.prompt,
            prepared.options,
            caches=self._caches,
            progress=None,
            cancel=self._cancel,
            start=prepared.start,
        )
        responses = list(answer.responses())
        self._check_cancelled()
        return _finished(prepared.index, responses)

    def _step(self) -> list[BatchResponse]:
        """Let every answer grow by a token; return those that end."""
        finished = []
        for token in device.run(self._engine.step):
            growing = self._growing[token.row]
            if token.row.error is not None:
                token.row.cancelled = True
                del self._growing[token.row]
                finished.append(_failed(growing.index, token.row.error))
                continue
            response = growing.builder.add(token.token, token.observed)
            growing.responses.append(response)
            if response.finish_reason is not None:
                token.row.cancelled = True  # it leaves before the next step
                del self._growing[token.row]
                finished.append(_finished(growing.index, growing.responses))
        return finished

    def _hold_wired_limit(self) -> None:
        wired_limit.hold(self._wired)
        self._holds_wired_limit = True

    def _release(self) -> None:
        """Drop all answers that are not finished. On the worker."""
        if self._holds_wired_limit:
            self._holds_wired_limit = False
            self._engine.remove(self._engine.rows)
            wired_limit.release(self._wired)
            mx.clear_cache()


def _guarded(index: int, work: Any) -> Any:
    """Return what some work for a request returns, or a response that says why there is nothing."""
    try:
        return work()
    except Cancelled:
        raise
    except JvlmError as error:
        return BatchResponse(index=index, result=None, error=str(error))
    except Exception as error:  # whatever it is, the other requests continue
        return _failed(index, error)


def _failed(index: int, error: Exception) -> BatchResponse:
    logger.error("request %d fails", index, exc_info=error)
    text = " ".join(str(error).split())
    return BatchResponse(index=index, result=None, error=f"{type(error).__name__}: {text}")


def _finished(index: int, responses: list[GenerationResponse]) -> BatchResponse:
    return BatchResponse(index=index, result=GenerationResult.collect(responses), error=None)
