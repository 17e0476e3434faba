"""Prompt lookup: drafts of the next tokens, from where the last ones occurred before.

An answer that copies (a table, the keys of JSON, a line that recurs, an earlier turn) often goes
on as it, or the prompt, went on before. So what followed the last few tokens there is a draft
that one pass through the decoder can verify. Here is what needs no device: which draft, of what
length, and whether it pays; `lookup_decoding.py` has the passes.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median

NGRAM_SIZES = (3, 2)
"""How many of the last tokens must have occurred before; the longer match counts."""
LONG, SHORT = 3, 2
"""Tokens of a draft. A pass of more rows costs more; what it costs is measured."""
MAX_MISSES = 3
"""After so many drafts in a row of which nothing was right, there is a pause."""
FIRST_PAUSE, MAX_PAUSE = 8, 256
"""Tokens of a pause; each is twice as long as the last, until a draft is right again."""

_PLAIN_TRIALS, _TRIALS = 4, 2
"""Passes of each kind that are measured before they are compared."""
_RECENT = 16
_PAYING = 4
"""Drafts after which it is asked whether they pay."""


class PromptLookup:
    """Drafts for one answer.

    It begins once plain passes have been measured, pauses while drafts are wrong or give fewer
    tokens per second than plain passes, and ends where even right ones would.

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
        # By length of the draft, 0 for plain passes. Medians count: whoever takes the tokens may
        # let some passes wait, which makes others look short.
        self._seconds: dict[int, deque[float]] = {
            size: deque(maxlen=_RECENT) for size in (0, SHORT, LONG)
        }
        self._recent: deque[tuple[int, bool]] = deque(maxlen=_RECENT)
        """Tokens of passes with a draft, and whether all of it was right; since the last pause."""
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
        return bool(self.draft(LONG))

    def draft(self, most: int) -> list[int]:
        """Return the tokens that may follow: as many as one of the sizes, or none.

        Args:
            most: tokens that are wanted.
        """
        size = self._size()
        if size > most:
            size = SHORT
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
            beyond = index - len(self._tokens)  # a short cycle continues in the draft itself
            token = self._tokens[index] if beyond < 0 else draft[beyond]
            if token >= self._vocab_size:
                return []
            draft.append(token)
        return draft

    def _size(self) -> int:
        if not self.is_on or self._pause or len(self._seconds[0]) < _PLAIN_TRIALS:
            return 0
        for size in (LONG, SHORT):
            if len(self._seconds[size]) < _TRIALS:
                return size
        # The last token of a long draft is right about as often as all of a recent one.
        right = [all_right for _, all_right in self._recent]
        fraction = sum(right) / len(right) if right else 1.0
        extra = median(self._seconds[LONG]) - median(self._seconds[SHORT])
        return LONG if fraction * median(self._seconds[0]) > extra else SHORT

    def passed(self, drafted: int, tokens: int, seconds: float) -> None:
        """Take note of a pass.

        Args:
            drafted: length of its draft; 0 for a plain pass.
            tokens: that it gave.
            seconds: since the pass before it.
        """
        self._seconds[drafted].append(seconds)
        if not drafted:
            return
        self._recent.append((tokens, tokens > drafted))
        self._misses = self._misses + 1 if tokens == 1 else 0
        if tokens > 1:
            self._next_pause = FIRST_PAUSE
        costs = {size: median(self._seconds[size] or [0.0]) for size in (SHORT, LONG)}
        plain = median(self._seconds[0])
        if all(cost >= plain * (1 + size) for size, cost in costs.items()):
            self.is_on = False
        mean = sum(count for count, _ in self._recent) / len(self._recent)
        pays = len(self._recent) < _PAYING or mean * plain > costs[drafted]
        if self._misses >= MAX_MISSES or not pays:
            self._pause = self._next_pause
            self._next_pause = min(2 * self._next_pause, MAX_PAUSE)
            self._recent.clear()
