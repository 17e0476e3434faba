"""Decoding with prompt lookup: several tokens a pass, and the same tokens as without.

A pass over several tokens runs other kernels than passes over one, which may round otherwise; then
an answer could take another turn wherever two tokens are nearly equal. So before a draft of a new
length is verified in one pass, and again each time the cache has grown by a good deal, its
tokens go through the decoder both ways, together and one by one. Only where logits, keys and
values are equal to the last bit do drafts of this length go on; else lookup ends for the answer.
"""

import logging
from collections import deque
from typing import Any, NamedTuple

import mlx.core as mx

from ..model import Model
from .row import Row, Token
from .sampling import greedy

logger = logging.getLogger(__name__)

TRIAL_TOKENS = 1024
"""Each so many tokens of the cache, equality is tried again: attention chooses its kernel, and how
it splits the keys, by their number."""


class _Pass(NamedTuple):
    """A pass that is under way."""

    draft: list[int]
    """Tokens that went through the decoder behind the last known one."""
    tokens: mx.array
    """(1 + draft,) most probable ones."""


class LookupGroup:
    """One greedy row with a plain KV cache and a `PromptLookup`; steps as `engine._Group`.

    Args:
        model: the model.
        row: with its lookup.
        cache: has the whole prompt.
        logits: (1, vocabulary) of the prompt's last position.
    """

    def __init__(self, model: Model, row: Row, cache: list[Any], logits: mx.array) -> None:
        assert row.lookup is not None
        self.rows = [row]
        self._model = model
        self._lookup = row.lookup
        self._cache = cache
        self._prompt_tokens: int = cache[0].offset
        self._answer: list[int] = []
        """All known tokens. Between passes, the cache has all but the last."""
        self._ready: deque[int] = deque()
        """Known tokens that have not been handed out."""
        self._tried: set[tuple[int, int]] = set()
        """Lengths of drafts and of the cache for which both ways were equal."""
        self._last_read: float | None = None
        self._pass = self._sample(logits, [])
        self._ahead: _Pass | None = None
        """A plain pass on the token of `_pass`, which is not known yet."""

    def keep(self, places: list[int]) -> None:
        """Drop the row, unless it is in its place."""
        self.rows = [self.rows[place] for place in places]

    def launch(self) -> None:
        """Start the device on the pass after the next one, if nothing has to be known for it."""
        if self._ready or self._ahead is not None or self._pass.draft or not self._answer:
            return
        if self.rows[0].max_tokens > 1 and not self._lookup.has_draft:
            self._ahead = self._sample(self._run(self._pass.tokens[None]), [])

    def collect(self) -> list[Token]:
        """Return the next token; wait for a pass if none is known."""
        if not self._ready:
            self._read()
        (row,) = self.rows
        row.max_tokens -= 1
        return [Token(row, self._ready.popleft(), ())]

    def plain(self) -> tuple[list[Any], int]:
        """Return the cache as it is before the next token, and that token, for plain decoding."""
        if not self._ready:
            self._read()
        self._answer = self._answer[: len(self._answer) - len(self._ready) + 1]
        self._trim()
        return self._cache, self._ready[0]

    def _read(self) -> None:
        """Wait for the pass that is under way, and start the next one."""
        draft = self._pass.draft
        found: list[int] = self._pass.tokens.tolist()  # type: ignore[assignment]
        right = 0
        while right < len(draft) and draft[right] == found[right]:
            right += 1
        tokens = found[: right + 1]
        now = self._lookup.clock()
        if self._last_read is not None:
            self._lookup.passed(len(draft), len(tokens), now - self._last_read)
        self._last_read = now
        self._lookup.add(tokens)
        self._answer += tokens
        self._ready += tokens
        if self._ahead is not None:
            self._pass, self._ahead = self._ahead, None
            return
        self._trim()
        remaining = self.rows[0].max_tokens - len(self._ready)
        if remaining > 0:
            self._pass = self._begin(self._lookup.draft(remaining - 1))

    def _begin(self, draft: list[int]) -> _Pass:
        """Start a pass on the last known token and a draft."""
        tokens = [self._answer[-1], *draft]
        kind = len(tokens), self._cache[0].offset // TRIAL_TOKENS
        if draft and kind not in self._tried:
            logits = self._try(tokens)
            self._tried.add(kind)
            self._last_read = None  # this took longer than either way
        else:
            logits = self._run(mx.array([tokens]))
        return self._sample(logits, draft)

    def _try(self, tokens: list[int]) -> mx.array:
        """Return logits (L, vocabulary) as plain decoding gives them; compare those of one pass."""
        first = self._cache[0].offset

        def states() -> list[mx.array]:
            arrays = [array for layer in self._cache for array in (layer.keys, layer.values)]
            return [array[..., first : first + len(tokens), :] for array in arrays]

        together = [self._run(mx.array([tokens])), *states()]
        mx.eval(together)
        for layer in self._cache:
            layer.trim(len(tokens))
        alone = [mx.concatenate([self._run(mx.array([[token]])) for token in tokens]), *states()]
        same = [mx.array_equal(one, other) for one, other in zip(together, alone, strict=True)]
        if not mx.all(mx.stack(same)).item():
            self._lookup.is_on = False
            logger.info(
                "prompt lookup is off: on this device, several tokens at once are rounded otherwise"
            )
        return alone[0]

    def _run(self, tokens: mx.array) -> mx.array:
        """Run tokens (1, L) through the decoder; return logits (L, vocabulary)."""
        hidden = self._model.decoder(self._model.decoder.embedding(tokens), self._cache)
        # (1, L, D) -> (L, D) -> (L, V)
        return self._model.head(hidden[0])

    def _sample(self, logits: mx.array, draft: list[int]) -> _Pass:
        tokens = greedy(logits)
        mx.async_eval(tokens)
        return _Pass(draft, tokens)

    def _trim(self) -> None:
        """Drop from the cache what is not of the answer, or its last token."""
        end = self._prompt_tokens + len(self._answer) - 1
        for layer in self._cache:
            layer.trim(layer.offset - end)
