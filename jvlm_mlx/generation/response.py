"""What an answer consists of, and how tokens become it: text, an end, and figures about both."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from ..processing.image_processor import PromptImage
from ..processing.inputs import PreparedPrompt
from ..processing.processor import Processor
from ..processing.tokenizer import Tokenizer
from .options import GenerationOptions
from .repetition import RepetitionGuard


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Sizes and speeds of an answer, as far as it has come."""

    prompt_tokens: int
    """Tokens of the prompt, images included."""
    image_tokens: int
    """How many of them are image tokens."""
    cached_tokens: int
    """How many of the prompt's tokens were in a cache, so that no prefill was needed."""
    tiles: tuple[int, ...]
    """Tiles of each image, its thumbnail included."""
    generation_tokens: int
    """Tokens produced, the one that ended the answer included."""
    first_token_seconds: float
    """From the call to the first token: images, vision tower, prompt."""
    image_seconds: float
    """How much of it was spent on opening, cutting and encoding images."""
    prompt_tps: float
    """Prompt tokens per second of prefill, without the time for the images."""
    generation_tps: float
    """Tokens per second after the first; 0 until there are two."""
    peak_memory: float
    """Most memory MLX has held in this process so far, in GB (1e9 bytes)."""
    finish_reason: str | None
    """`stop` (a stop token or text), `length`, `repetition` (the answer went round in circles),
    `cancelled`; None until it ends."""


@dataclass(frozen=True, kw_only=True)
class GenerationResponse(Counts):
    """One token of an answer."""

    text: str
    """Text that has become certain with this token; may be empty."""
    token: int | None
    """The token; None in the last response of an answer that was cancelled."""
    logprob: float | None = None
    """Log probability of the token, if `logprobs` was asked for."""
    top_logprobs: tuple[tuple[int, float], ...] = ()
    """The most probable tokens with their log probabilities, the highest first."""


@dataclass(frozen=True, kw_only=True)
class GenerationResult(Counts):
    """A whole answer."""

    text: str
    """The answer, without stop texts and special tokens."""
    token_ids: tuple[int, ...]
    """All tokens produced, the one that ended the answer included."""
    logprobs: tuple[float, ...] | None = None
    """Log probability of each token, if `logprobs` was asked for."""

    @classmethod
    def collect(cls, responses: Sequence[GenerationResponse]) -> "GenerationResult":
        """Put the responses of an answer together."""
        last = responses[-1]
        counts = {field.name: getattr(last, field.name) for field in dataclasses.fields(Counts)}
        logprobs = tuple(one.logprob for one in responses if one.logprob is not None)
        return cls(
            text="".join(one.text for one in responses),
            token_ids=tuple(one.token for one in responses if one.token is not None),
            logprobs=logprobs or None,
            **counts,
        )


class ResponseBuilder:
    """Takes the tokens of one answer and says what each of them means.

    Args:
        processor: of the checkpoint.
        prepared: the prompt.
        options: of the request.
        max_tokens: most tokens of the answer.
        start: when the request came, by `time.perf_counter`.
    """

    def __init__(
        self,
        processor: Processor,
        prepared: PreparedPrompt[PromptImage],
        options: GenerationOptions,
        max_tokens: int,
        start: float,
    ) -> None:
        self.token_ids: list[int] = []
        """Tokens so far, the one that ended the answer included."""
        self.image_seconds = 0.0
        """Set when the images are done."""
        self.cached_tokens = 0
        """Set when the caches have been searched."""
        self.max_tokens = max_tokens
        self._start = start
        self._first_token = 0.0
        self._prompt_tokens = len(prepared.token_ids)
        self._image_tokens = prepared.image_tokens
        self._tiles = prepared.tiles
        self._text = StreamedText(processor.tokenizer, options.stop)
        self._guard = RepetitionGuard(processor.decode) if options.repetition_guard else None
        self._stop_token_ids = (
            processor.tokenizer.stop_token_ids
            if options.stop_token_ids is None
            else options.stop_token_ids
        )

    def images_done(self) -> None:
        """Note the time at which all images are encoded."""
        self.image_seconds = time.perf_counter() - self._start

    def add(self, token: int, observed: Sequence[mx.array] = ()) -> GenerationResponse:
        """Take the next token. The response has a finish reason if the answer ends with it.

        Args:
            token: the token.
            observed: of `sampling.top_logprobs`, evaluated.
        """
        if not self.token_ids:
            self._first_token = time.perf_counter()
        self.token_ids.append(token)
        reason: str | None
        if token in self._stop_token_ids:
            text, reason = self._text.finish(), "stop"
        else:
            text, reason = self._text.add(token), self._finish_reason(token)
            if reason in ("length", "repetition"):
                text += self._text.finish()
        return self._response(token, text, reason, observed)

    def cancel(self) -> GenerationResponse:
        """Return the last response of an answer that was cancelled."""
        return self._response(None, self._text.finish(), "cancelled")

    def _finish_reason(self, token: int) -> str | None:
        if self._text.stopped:
            return "stop"
        if len(self.token_ids) == self.max_tokens:
            return "length"
        if self._guard is not None and self._guard.add(token):
            return "repetition"
        return None

    def _response(
        self, token: int | None, text: str, reason: str | None, observed: Sequence[mx.array] = ()
    ) -> GenerationResponse:
        now = time.perf_counter()
        tokens = len(self.token_ids)
        first_token_seconds = (self._first_token or now) - self._start
        prompt_seconds = first_token_seconds - self.image_seconds
        logprob, top_logprobs = _read_logprobs(observed)
        return GenerationResponse(
            text=text,
            token=token,
            logprob=logprob,
            top_logprobs=top_logprobs,
            prompt_tokens=self._prompt_tokens,
            image_tokens=self._image_tokens,
            cached_tokens=self.cached_tokens,
            tiles=self._tiles,
            generation_tokens=tokens,
            first_token_seconds=first_token_seconds,
            image_seconds=self.image_seconds,
            prompt_tps=(
                (self._prompt_tokens - self.cached_tokens) / prompt_seconds if tokens else 0.0
            ),
            generation_tps=(tokens - 1) / (now - self._first_token) if tokens > 1 else 0.0,
            peak_memory=mx.get_peak_memory() / 1e9,
            finish_reason=reason,
        )


def _read_logprobs(
    observed: Sequence[mx.array],
) -> tuple[float | None, tuple[tuple[int, float], ...]]:
    """Return the token's log probability, and the most probable tokens with theirs."""
    if not observed:
        return None, ()
    chosen, *top = ([*one.flatten().tolist()] for one in observed)  # type: ignore[misc]
    return chosen[0], tuple(zip(*top, strict=True))


class StreamedText:
    """Tokens to text as it may be shown: whole characters, up to a stop text.

    Text that could still become part of a character or of a stop text is held back until it is
    clear what it is.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._detokenizer = tokenizer.detokenizer()
        self._stop = stop
        self._held_back = ""
        self.stopped = False
        """Whether a stop text has been produced."""

    def add(self, token: int) -> str:
        """Take a token; return the text that is certain by now, perhaps none."""
        self._detokenizer.add_token(token)
        return self._certain(self._detokenizer.last_segment)

    def finish(self) -> str:
        """Return what was held back, for an answer that ends here."""
        self._detokenizer.finalize()
        text = self._certain(self._detokenizer.last_segment) + self._held_back
        self._held_back = ""
        return text

    def _certain(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._held_back + text
        ends = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if ends:
            self.stopped, self._held_back = True, ""
            return text[: min(ends)]
        kept = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held_back = text[len(text) - kept :]
        return text[: len(text) - kept]


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` may be the first of `stop`."""
    sizes = range(min(len(text), len(stop) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)
