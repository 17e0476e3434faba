"""Prompt lookup: drafts of the next tokens, from where the last ones occurred before.

An answer that copies (a table, the keys of JSON, a line that recurs, an earlier turn) often goes
on as it, or the prompt, went on before. So what followed the last few tokens there is a draft
that one pass through the decoder can verify. Here is what needs no device: which draft, of what
length, and whether it pays; `lookup_decoding.py` has the passes.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

NGRAM_SIZES = (3, 2)
"""How many of the last tokens must have occurred before; the longer match counts."""
DRAFT_SIZES = (3, 2)
"""Tokens of a draft. A pass of more rows costs more, so the better one is found by measuring."""
MAX_MISSES = 3
"""After so many drafts in a row of which nothing was right, there is a pause."""
FIRST_PAUSE, MAX_PAUSE = 8, 256
"""Tokens of a pause; each is twice as long as the last, until a draft is right again."""

_TRIALS = 4
"""Passes of each kind that are measured before they are compared."""
_RECENT = 16


@dataclass
class _Passes:
    """The last passes of one kind."""

    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))
    tokens: deque[int] = field(default_factory=lambda: deque(maxlen=_RECENT))

    def add(self, tokens: int, seconds: float) -> None:
        self.tokens.append(tokens)
        self.seconds.append(seconds)

    @property
    def is_measured(self) -> bool:
        return len(self.tokens) >= _TRIALS

    @property
    def rate(self) -> float:
        """Tokens per second. The fastest pass counts: others may have had to wait."""
        return sum(self.tokens) / len(self.tokens) / max(min(self.seconds), 1e-9)


class PromptLookup:
    """Drafts for one answer.

    It begins once plain passes have been measured, pauses after drafts that were wrong, and
    switches itself off for the rest of the answer when its passes give fewer tokens per second
    than plain ones.

    Args:
        prompt: its token ids.
        vocab_size: ids from here on, those of images, are never drafted.
        clock: seconds, as by `time.perf_counter`.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        vocab_size: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.is_on = True
        self.clock = clock
        self._vocab_size = vocab_size
        self._tokens: list[int] = []
        self._following: dict[tuple[int, ...], int] = {}
        """Index of the token that followed the last occurrence of an n-gram."""
        self._plain = _Passes()
        self._drafted = {size: _Passes() for size in DRAFT_SIZES}
        self._misses = 0
        self._pause, self._next_pause = 0, FIRST_PAUSE
        self._add_all(prompt)

    def add(self, tokens: Sequence[int]) -> None:
        """Take note of the next tokens of the answer."""
        self._add_all(tokens)
        self._pause = max(0, self._pause - len(tokens))

    def _add_all(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            for size in NGRAM_SIZES:
                if len(self._tokens) >= size:
                    # An n-gram is found only when there is something behind it.
                    self._following[tuple(self._tokens[-size:])] = len(self._tokens)
            self._tokens.append(token)

    @property
    def has_draft(self) -> bool:
        """Whether there is a draft of what follows the tokens so far."""
        return bool(self.draft(DRAFT_SIZES[0]))

    def draft(self, most: int) -> list[int]:
        """Return the tokens that may follow: as many as one of the sizes, or none.

        Args:
            most: tokens that are wanted.
        """
        size = self._size()
        if size > most:
            size = DRAFT_SIZES[-1]
        if not size or size > most:
            return []
        for ngram_size in NGRAM_SIZES:
            start = self._following.get(tuple(self._tokens[-ngram_size:]))
            if start is not None:
                return self._continuation(start, size)
        return []

    def _continuation(self, start: int, count: int) -> list[int]:
        draft: list[int] = []
        for index in range(start, start + count):
            beyond = index - len(self._tokens)  # a short cycle goes on in the draft itself
            token = self._tokens[index] if beyond < 0 else draft[beyond]
            if token >= self._vocab_size:
                return []
            draft.append(token)
        return draft

    def _size(self) -> int:
        if not self.is_on or self._pause or not self._plain.is_measured:
            return 0
        for size, passes in self._drafted.items():
            if not passes.is_measured:
                return size
        best = max(DRAFT_SIZES, key=lambda size: self._drafted[size].rate)
        self.is_on = self._drafted[best].rate > self._plain.rate
        return best if self.is_on else 0

    def passed(self, drafted: int, tokens: int, seconds: float) -> None:
        """Take note of a pass.

        Args:
            drafted: length of its draft; 0 for a plain pass.
            tokens: that it gave.
            seconds: since the pass before it.
        """
        if not drafted:
            self._plain.add(tokens, seconds)
            return
        self._drafted[drafted].add(tokens, seconds)
        if tokens > 1:
            self._misses, self._next_pause = 0, FIRST_PAUSE
            return
        self._misses += 1
        if self._misses >= MAX_MISSES:
            self._pause = self._next_pause
            self._next_pause = min(2 * self._next_pause, MAX_PAUSE)
