"""An answer as it grows: tokens become text, an end, and numbers about both."""

import time

import mlx.core as mx

from ..processing.image_processor import PromptImage
from ..processing.inputs import PreparedPrompt
from ..processing.processor import Processor
from .answer_text import AnswerText
from .options import GenerationOptions
from .response import GenerationResponse


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
        """Set when the prompt is read."""
        self.max_tokens = max_tokens
        self._start = start
        self._first_token = 0.0
        self._prompt_tokens = len(prepared.token_ids)
        self._image_tokens = prepared.image_tokens
        self._tiles = prepared.tiles
        self._text = AnswerText(processor.tokenizer, options.stop)
        self._stop_token_ids = (
            processor.tokenizer.stop_token_ids
            if options.stop_token_ids is None
            else options.stop_token_ids
        )

    def images_done(self) -> None:
        """Note the time at which all images are encoded."""
        self.image_seconds = time.perf_counter() - self._start

    def add(self, token: int) -> GenerationResponse:
        """Take the next token. The piece has a finish reason if the answer ends with it."""
        if not self.token_ids:
            self._first_token = time.perf_counter()
        self.token_ids.append(token)
        if token in self._stop_token_ids:
            return self._piece(token, self._text.finish(), "stop")
        text = self._text.add(token)
        if self._text.stopped:
            return self._piece(token, text, "stop")
        if len(self.token_ids) == self.max_tokens:
            return self._piece(token, text + self._text.finish(), "length")
        return self._piece(token, text, None)

    def cancel(self) -> GenerationResponse:
        """Return the last piece of an answer that was cancelled."""
        return self._piece(None, self._text.finish(), "cancelled")

    def _piece(self, token: int | None, text: str, reason: str | None) -> GenerationResponse:
        now = time.perf_counter()
        tokens = len(self.token_ids)
        first_token_seconds = (self._first_token or now) - self._start
        prompt_seconds = first_token_seconds - self.image_seconds
        return GenerationResponse(
            text=text,
            token=token,
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
