"""The model behind the routes: loaded in the background, then asked by every request."""

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import JvlmError, RequestError
from ..generation.caches import GenerationCaches
from ..generation.json_grammar import with_grammar
from ..generation.memory import WiredBytes
from ..generation.options import GenerationOptions
from ..generation.prompt import prepare_prompt
from ..generation.response import GenerationResponse
from ..model import Model
from ..processing.image_processor import PromptImage
from ..processing.inputs import PreparedPrompt
from ..processing.processor import Processor
from ..progress import ProgressEvent
from .admission import Job
from .api_error import ApiError, invalid, loading, unknown_model
from .chat_request import ChatRequest
from .chat_response import TokenLogprob
from .image_policy import ImagePolicy
from .scheduler import Scheduler
from .text_completion import PromptScores, TextRequest, score_prompt, token_ids

logger = logging.getLogger(__name__)

LOADING_SECONDS = 30
"""After which a client that came too early should try again."""

LoadModel = Callable[[Callable[[ProgressEvent], None]], tuple[Model, Processor]]


@dataclass(frozen=True, kw_only=True)
class ServiceOptions:
    """What the command line says about the service."""

    served_name: str
    """What clients call the model."""
    defaults: Mapping[str, Any]
    """Generation options of requests that do not say otherwise; before the checkpoint's own."""
    policy: ImagePolicy
    cache_bytes: int
    max_concurrent: int
    max_queue: int
    max_memory: int | None
    wired_limit: WiredBytes = None


@dataclass(eq=False)
class Choice:
    """One answer of a request: what the scheduler emits reaches the event loop through it."""

    index: int
    job: Job
    responses: "asyncio.Queue[GenerationResponse | ApiError]"


@dataclass(eq=False)
class Service:
    """Loads the model, and turns checked requests into choices that are being answered."""

    options: ServiceOptions
    load: LoadModel
    progress: ProgressEvent | None = None
    """How far loading has come."""
    error: str | None = None
    """Why the model could not be loaded, in one line."""
    scheduler: Scheduler | None = None
    processor: Processor | None = None
    _thread: threading.Thread | None = field(default=None, repr=False)
    _scoring: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _stopping: threading.Thread | None = field(default=None, repr=False)

    def start(self) -> None:
        """Load the model in a thread of its own; until it is there, requests are refused."""
        self._thread = threading.Thread(target=self._load, name="jvlm-load", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until the model is there, or has failed to load."""
        if self._thread is not None:
            self._thread.join()

    def stop(self, seconds: float) -> None:
        """Take no more requests, and let those there are finish within a time or end; at once.

        May be called again; see `wait_until_stopped`.
        """
        if self.scheduler is not None and self._stopping is None:
            self._stopping = threading.Thread(
                target=self.scheduler.close, args=(seconds,), name="jvlm-stop", daemon=True
            )
            self._stopping.start()

    def wait_until_stopped(self) -> None:
        """Wait for what `stop` began."""
        if self._stopping is not None:
            self._stopping.join()

    def _load(self) -> None:
        def note(event: ProgressEvent) -> None:
            self.progress = event

        try:
            model, self.processor = self.load(note)
            self.scheduler = Scheduler(
                model,
                self.processor,
                caches=GenerationCaches(self.options.cache_bytes),
                max_concurrent=self.options.max_concurrent,
                max_queue=self.options.max_queue,
                max_memory=self.options.max_memory,
                wired=self.options.wired_limit,
            )
        except JvlmError as error:
            self.error = str(error)
        except Exception as error:
            logger.exception("the model could not be loaded")
            self.error = f"{type(error).__name__}: {error}"

    def ready(self) -> tuple[Scheduler, Processor]:
        """Return scheduler and processor.

        Raises:
            ApiError: the model is still being loaded, or could not be.
        """
        if self.error is not None:
            raise ApiError(503, "the model could not be loaded", kind="server_error",
                           code="model_failed")  # fmt: skip
        if self.scheduler is None or self.processor is None:
            raise loading(LOADING_SECONDS)
        return self.scheduler, self.processor

    def check_model(self, name: str) -> None:
        """Refuse a request for another model; an empty name is this one.

        Raises:
            ApiError: it names another model.
        """
        if name and name != self.options.served_name:
            raise unknown_model(name[:100], self.options.served_name)

    def prepare(
        self, request: ChatRequest, loop: asyncio.AbstractEventLoop, owner: str
    ) -> list[Choice]:
        """Open images, make the prompt, and check that it fits. Takes CPU time: not on the loop.

        Args:
            request: what is asked.
            loop: that responses are delivered to.
            owner: whose request it is; only caches of the same owner are used.

        Raises:
            ApiError: anything is wrong with the request.
        """
        scheduler, processor = self.ready()
        try:
            options = self._generation_options(request)
        except JvlmError as error:
            raise invalid(str(error)) from None
        messages = self.options.policy.open_all(
            processor,
            request.messages,
            request.image_options,
            scheduler.caches.scoped(owner).images,
        )
        try:
            prompt = prepare_prompt(processor, messages, None, None, options)
        except JvlmError as error:
            raise invalid(str(error), "messages") from None
        choices = []
        for index in range(request.choices):
            try:
                one = with_grammar(options, scheduler.model, processor)
            except RequestError as error:
                raise invalid(str(error), "response_format", "invalid_schema") from None
            if options.seed is not None:
                one = replace(one, seed=(options.seed + index) % 2**64)
            choices.append(self._choice(index, prompt, one, loop, owner))
        return choices

    def prepare_text(
        self, request: TextRequest, loop: asyncio.AbstractEventLoop, owner: str
    ) -> tuple[list[list[int]], list[PromptScores | None], list[Choice]]:
        """Return the tokens of each prompt, its scores if they are asked for, and its choice.

        Without anything to generate there are no choices. Takes device time: not on the loop.

        Raises:
            ApiError: anything is wrong with the request.
        """
        scheduler, processor = self.ready()
        model = scheduler.model
        vocab_size = model.config.decoder.vocab_size
        wanted = {**request.options, "max_tokens": max(1, request.max_tokens)}
        if request.logprobs is not None:
            wanted["logprobs"] = request.logprobs
        try:
            options = self._with_defaults(wanted)
        except JvlmError as error:
            raise invalid(str(error)) from None
        prompts = [token_ids(processor, one, vocab_size) for one in request.prompts]
        bos = processor.tokenizer.bos_token_id
        choices = []
        for index, tokens in enumerate(prompts):
            prompt: PreparedPrompt[PromptImage] = PreparedPrompt(
                np.array([bos, *tokens], np.int32), (), ()
            )
            choices.append(self._choice(index, prompt, options, loop, owner))
        scores: list[PromptScores | None] = [None] * len(prompts)
        if request.echo and request.logprobs is not None:
            # One at a time: nothing is reserved for its KV cache, which is gone afterwards.
            with self._scoring:
                scores = [
                    score_prompt(model, tokens, bos, request.logprobs) if tokens else None
                    for tokens in prompts
                ]
        return prompts, scores, choices if request.max_tokens else []

    def prepare_probe(self, loop: asyncio.AbstractEventLoop) -> Choice:
        """Return the smallest request that there is, a single token, to see whether it comes."""
        bos = self.ready()[1].tokenizer.bos_token_id
        prompt: PreparedPrompt[PromptImage] = PreparedPrompt(np.array([bos], np.int32), (), ())
        return self._choice(0, prompt, GenerationOptions(max_tokens=1), loop, "probe")

    def _choice(
        self,
        index: int,
        prompt: PreparedPrompt[PromptImage],
        options: GenerationOptions,
        loop: asyncio.AbstractEventLoop,
        owner: str,
    ) -> Choice:
        """Return a checked choice whose responses reach the loop."""
        queue: asyncio.Queue[GenerationResponse | ApiError] = asyncio.Queue()
        job = Job(prompt, options, lambda one: _deliver(loop, queue, one), owner)
        self.ready()[0].check(job)
        return Choice(index, job, queue)

    def _generation_options(self, request: ChatRequest) -> GenerationOptions:
        wanted: dict[str, Any] = dict(request.options)
        if request.top_logprobs is not None:
            # The chosen token is one of them or comes in addition.
            wanted["logprobs"] = request.top_logprobs
        if request.logit_bias:
            wanted["logits_processors"] = (LogitBias(request.logit_bias),)
        return self._with_defaults(wanted)

    def _with_defaults(self, wanted: Mapping[str, Any]) -> GenerationOptions:
        processor = self.ready()[1]
        return GenerationOptions.of(self.options.defaults, wanted, processor.generation_defaults)

    def logprobs(self, response: GenerationResponse) -> list[TokenLogprob]:
        """Return the log probabilities of a response's token, as the API has them.

        Tokens without text, like the one that ended the answer, have none. The first token has no
        leading space, and so have the texts of all tokens together none.
        """
        processor = self.processor
        if processor is None or response.token is None or response.logprob is None:
            return []
        is_first = response.generation_tokens == 1

        def spelled(token: int) -> tuple[str, bytes]:
            data = processor.tokenizer.token_bytes(token)
            data = data.removeprefix(b" ") if is_first else data
            return data.decode("utf-8", "replace"), data

        if not processor.tokenizer.token_bytes(response.token):
            return []

        alternatives = tuple((*spelled(token), logprob) for token, logprob in response.top_logprobs)
        return [TokenLogprob(*spelled(response.token), response.logprob, alternatives)]


def _deliver(
    loop: asyncio.AbstractEventLoop,
    queue: "asyncio.Queue[GenerationResponse | ApiError]",
    response: GenerationResponse | ApiError,
) -> None:
    loop.call_soon_threadsafe(queue.put_nowait, response)


@dataclass(frozen=True)
class LogitBias:
    """A logits processor that adds to the logits of chosen tokens."""

    bias: Mapping[int, float]

    def __call__(self, _: mx.array, logits: mx.array) -> mx.array:
        """Return logits (1, vocabulary) with the bias; ids beyond the vocabulary have no effect."""
        vocabulary = logits.shape[-1]
        known = {token: value for token, value in self.bias.items() if token < vocabulary}
        if not known:
            return logits
        added = mx.array(list(known.values()), dtype=logits.dtype)
        return logits.at[:, mx.array(list(known))].add(added)


def cancel(scheduler: Scheduler, choices: Sequence[Choice]) -> None:
    """Drop what is left of a request."""
    for choice in choices:
        scheduler.cancel(choice.job)
