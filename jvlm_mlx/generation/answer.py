"""One answer: encode images, prefill the prompt, decode token by token."""

import threading
from collections.abc import Generator
from functools import partial

import mlx.core as mx

from ..errors import PromptError
from ..model import Model
from ..processing.image_processor import PromptImage
from ..processing.inputs import PreparedPrompt
from ..processing.processor import Processor
from ..progress import Progress, no_progress
from . import device
from .caches import GenerationCaches
from .engine import Engine
from .image_encoding import EncodedImage
from .json_grammar import with_grammar
from .memory import wired_limit
from .model_identity import model_key
from .options import GenerationOptions
from .prefill import Prefill
from .prompt import answer_length
from .prompt_lookup import PromptLookup
from .response import GenerationResponse, ResponseBuilder
from .row import Row, Token
from .sampling import make_processors, make_sampler, text_tokens, top_logprobs


class Cancelled(Exception):  # noqa: N818 - a signal, not an error
    """Leaves the work when the caller's flag is set."""


def check_cancelled(cancel: threading.Event | None) -> None:
    """Raise `Cancelled` if the caller's flag is set."""
    if cancel is not None and cancel.is_set():
        raise Cancelled


def check_fit(model: Model, prepared: PreparedPrompt[PromptImage]) -> None:
    """Refuse a prompt that was made for another model.

    Raises:
        ImageError: another model has encoded an image; names it.
        PromptError: the model has no embedding of a token. MLX would read beyond the table.
        RequestError: the model was loaded before this process was forked.
    """
    device.take_over(model)
    rows = model.decoder.embedding.weight.shape[0]
    highest = int(prepared.token_ids.max(initial=0))
    if highest >= rows:
        raise PromptError(
            f"the prompt has token {highest}, but the model knows {rows} tokens; take tokenizer"
            " and weights from the same checkpoint"
        )
    encoded = [one for one in prepared.images if isinstance(one, EncodedImage)]
    if encoded:
        key = model_key(model)
        for image in encoded:
            image.check_model(key)


def make_row(
    model: Model, prepared: PreparedPrompt[PromptImage], options: GenerationOptions, max_tokens: int
) -> Row:
    """Return what the engine is to know of a request. On the worker: it makes arrays."""
    processors = make_processors(options)
    vocab_size = model.config.decoder.vocab_size
    count = options.logprobs
    return Row(
        max_tokens=max_tokens,
        sampler=make_sampler(options),
        processors=processors,
        history=text_tokens(prepared.token_ids, vocab_size) if processors else None,
        observer=None if count is None else partial(top_logprobs, count),
        grammar=options.grammar,
        lookup=(
            PromptLookup(prepared.token_ids.tolist(), vocab_size) if options.prompt_lookup else None
        ),
    )


class Answer:
    """One answer; see `stream_generate` for the arguments.

    Args:
        model: from `load`.
        processor: from `load`.
        prepared: the prompt.
        options: of the request.
        caches: for images and prompts, or None.
        progress: called with how far images and prompt have come.
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
        options = with_grammar(options, model, processor)
        self._model = model
        self._prepared: PreparedPrompt[PromptImage] | None = prepared
        self._options = options
        self._check_cancelled = partial(check_cancelled, cancel)
        self._max_tokens = answer_length(model, len(prepared.token_ids), options)
        self._builder = ResponseBuilder(processor, prepared, options, self._max_tokens, start)
        self._prefill = Prefill(
            model,
            prepared,
            options,
            caches,
            self._builder,
            progress or no_progress,
            self._check_cancelled,
        )
        self._engine = Engine(model)
        # Of quantized and rotating caches, what can be reused has been stored after the prefill.
        self._keeps_cache = options.has_plain_cache
        self._holds_wired_limit = False

    def make_room(self) -> int:
        """Let caches release what has no room beside this answer; return how many tiles fit."""
        return self._prefill.make_room().tile_group_size

    def responses(self) -> Generator[GenerationResponse, None, None]:
        """Yield the responses; see `stream_generate`.

        Whenever and wherever the generator ends, a finalizer included, the clean-up only has to
        be posted to the device's worker.
        """
        try:
            device.run(self._hold_wired_limit)
            yield from self._decode()
        except Cancelled:
            device.run(partial(self._release, keep=True))
            yield self._builder.cancel()
        except GeneratorExit:
            device.post(partial(self._release, keep=True))
            raise
        except BaseException:
            device.post(partial(self._release, keep=False))
            raise

    def _decode(self) -> Generator[GenerationResponse, None, None]:
        token = self._first_token()
        while True:
            if token.row.error is not None:
                raise token.row.error
            response = self._builder.add(token.token, token.observed)
            if response.finish_reason:
                # The next step may be under way already; all is released before the last response.
                device.run(partial(self._release, keep=True))
                yield response
                return
            yield response
            self._check_cancelled()
            (token,) = device.run(self._engine.step)

    def _first_token(self) -> Token:
        prepared = self._prepared
        assert prepared is not None
        logits = self._prefill.run(prepared)
        # Images are not needed any more, and may be large.
        self._prepared = None

        self._check_cancelled()

        def begin() -> list[Token]:
            row = make_row(self._model, prepared, self._options, self._max_tokens)
            self._engine.add([row], self._prefill.cache, logits)
            return self._engine.step()

        (token,) = device.run(begin)
        return token

    def _hold_wired_limit(self) -> None:
        wired_limit.hold(self._options.wired_limit)
        self._holds_wired_limit = True

    def _release(self, *, keep: bool) -> None:
        """Free the KV cache, once its tokens are stored if that is wanted. On the worker."""
        if not self._holds_wired_limit:
            return
        self._holds_wired_limit = False
        try:
            if keep and self._keeps_cache:
                self._prefill.keep(self._builder.token_ids)
        finally:
            self._engine.remove(self._engine.rows)
            self._prefill.cache = []
            wired_limit.release(self._options.wired_limit)
            mx.clear_cache()
