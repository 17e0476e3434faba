"""The decode loop: rows, each with its own prompt behind it, grow token by token.

Nothing here knows of texts, requests or threads; all of it runs on the worker of `device.py`.
The loop is pulled: a step hands out one token of every row, and by then the step after it is
under way on the device, so that the host's work between two steps costs nothing. Rows join and
leave between steps. They may differ in everything; rows with plain KV caches share one batched
cache, and so one pass through the decoder.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from .. import _mlx_lm
from ..model import Model
from .kv_cache import can_batch, joined, keep_rows
from .lookup_decoding import LookupGroup
from .row import Row, Token
from .sampling import greedy


class Engine:
    """Rows that are decoded together; see the module for how.

    Args:
        model: the model.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._groups: list[_Group | LookupGroup] = []

    @property
    def rows(self) -> list[Row]:
        """All rows, in the order of the steps' tokens."""
        return [row for group in self._groups for row in group.rows]

    def add(self, rows: Sequence[Row], cache: list[Any], logits: mx.array) -> None:
        """Let rows join.

        Args:
            rows: one for a cache of one row; B for a batched one.
            cache: has all of the prompts. Shared with nobody: it grows in place.
            logits: (B, vocabulary) of the prompts' last positions.
        """
        self._remove_cancelled()
        if _can_look_up(rows, cache) and not self._groups:
            self._groups = [LookupGroup(self._model, rows[0], cache, logits)]
            return
        group = _Group(self._model, list(rows), cache)
        group.start(logits)
        # Rows with lookup would advance by different numbers of tokens, for which a batched cache
        # has no room.
        groups = [self._without_lookup(other) for other in self._groups]
        taker = next((other for other in groups if other.can_take(group)), None)
        if taker is not None:
            taker.take(group)
        else:
            groups.append(group)
        self._groups = [*groups]

    def _without_lookup(self, group: "_Group | LookupGroup") -> "_Group":
        if isinstance(group, _Group):
            return group
        cache, token = group.plain()
        plain = _Group(self._model, group.rows, cache)
        plain.resume(token)
        return plain

    def step(self) -> list[Token]:
        """Return the next token of every row."""
        self._remove_cancelled()
        for group in self._groups:
            group.launch()
        tokens = [token for group in self._groups for token in group.collect()]
        self.remove([row for row in self.rows if row.max_tokens == 0])
        return tokens

    def _remove_cancelled(self) -> None:
        self.remove([row for row in self.rows if row.cancelled])

    def remove(self, rows: Sequence[Row]) -> None:
        """Let rows leave; those that have left already are passed over."""
        leaving = {id(row) for row in rows}
        for group in self._groups if leaving else ():
            group.keep([i for i, row in enumerate(group.rows) if id(row) not in leaving])
        self._groups = [group for group in self._groups if group.rows]


class _Group:
    """Rows that go through the decoder together."""

    def __init__(self, model: Model, rows: list[Row], cache: list[Any]) -> None:
        self.rows = rows
        self._model = model
        self._cache = cache
        # Tokens that were sampled last. The cache has everything before them.
        self._tokens = mx.zeros(0, mx.uint32)
        self._observed: list[tuple[mx.array, ...]] = []
        self._current = self._tokens, self._observed
        self._handed_out = False
        self._is_new = True

    def start(self, logits: mx.array) -> None:
        """Sample the first tokens from logits (B, vocabulary)."""
        self._tokens, self._observed = self._sample(logits)

    def resume(self, token: int) -> None:
        """Take the token of a single row, which has been sampled but not handed out."""
        self._tokens, self._observed = mx.array([token], mx.uint32), [()]

    @property
    def _looks_ahead(self) -> bool:
        """Whether the next step may begin before the host has seen the tokens of this one."""
        return not any(row.grammar for row in self.rows)

    def can_take(self, other: "_Group") -> bool:
        """Whether two groups can become one. Rows with a grammar would hold up the others."""
        return (
            can_batch(self._cache)
            and can_batch(other._cache)
            and self._looks_ahead == other._looks_ahead
        )

    def take(self, other: "_Group") -> None:
        """Take the rows of another group, whose tokens have not been handed out yet."""
        if self._handed_out:
            self._advance()
        self._cache = joined(self._cache, other._cache)
        self.rows += other.rows
        self._tokens = mx.concatenate([self._tokens, other._tokens])
        self._observed += other._observed

    def keep(self, places: list[int]) -> None:
        """Drop all other rows."""
        if len(places) == len(self.rows):
            return
        self.rows = [self.rows[place] for place in places]
        if places:
            keep_rows(self._cache, places)
            self._tokens = self._tokens[mx.array(places)]
            self._observed = [self._observed[place] for place in places]

    def launch(self) -> None:
        """Start the device on the next step, and on the one after it."""
        if self._handed_out:
            self._advance()
        self._current = self._tokens, self._observed
        self._handed_out = True
        # Nobody is to wait for the very first token any longer than for the prompt.
        is_new, self._is_new = self._is_new, False
        if not is_new and self._looks_ahead and any(row.max_tokens > 1 for row in self.rows):
            self._advance()

    def collect(self) -> list[Token]:
        """Wait for the tokens of the step, and return them."""
        tokens, observed = self._current
        values: list[int] = tokens.tolist()  # type: ignore[assignment]
        for row, value in zip(self.rows, values, strict=True):
            row.max_tokens -= 1
            if row.grammar is not None:
                row.grammar.accept(value)
        return list(map(Token, self.rows, values, observed))

    def _advance(self) -> None:
        """Run the last tokens through the decoder, and sample those that follow."""
        tokens = self._tokens
        for place, row in enumerate(self.rows):
            if row.history is not None:
                following = tokens[place : place + 1].astype(row.history.dtype)
                row.history = mx.concatenate([row.history, following])
        # (B,) -> (B, 1) -> (B, 1, D) -> (B, V)
        embeddings = self._model.decoder.embedding(tokens[:, None])
        hidden = self._model.decoder(embeddings, self._cache)
        self._tokens, self._observed = self._sample(self._model.head(hidden[:, -1]))
        self._handed_out = False

    def _sample(self, logits: mx.array) -> tuple[mx.array, list[tuple[mx.array, ...]]]:
        """Return a token (B,) for each row of logits (B, V), and what is observed; under way."""
        if all(row.takes_argmax for row in self.rows):
            tokens = greedy(logits)
            observed: list[tuple[mx.array, ...]] = [() for _ in self.rows]
        else:
            sampled = [
                _sample_row(row, logits[place : place + 1]) for place, row in enumerate(self.rows)
            ]
            tokens = mx.concatenate([token for token, _ in sampled])
            observed = [seen for _, seen in sampled]
        mx.async_eval(tokens, observed)
        return tokens, observed


def _can_look_up(rows: Sequence[Row], cache: Sequence[Any]) -> bool:
    """Return whether a row is decoded with prompt lookup. A rotating cache cannot be trimmed."""
    return (
        len(rows) == 1
        and rows[0].lookup is not None
        and rows[0].takes_argmax
        and all(type(layer) is _mlx_lm.KVCache for layer in cache)
    )


def _sample_row(row: Row, logits: mx.array) -> tuple[mx.array, tuple[mx.array, ...]]:
    """Return a token (1,) for logits (1, V), and what the row's observer sees."""
    try:
        return _sample_as_asked(row, logits)
    except Exception as error:
        row.error = error
        return greedy(logits), ()


def _sample_as_asked(row: Row, logits: mx.array) -> tuple[mx.array, tuple[mx.array, ...]]:
    for process in row.processors:
        assert row.history is not None
        logits = process(row.history, logits)
    if row.grammar is not None:
        logits = row.grammar.mask(logits)
    if row.sampler is greedy and row.observer is None:
        return greedy(logits), ()
    logits = logits.astype(mx.float32)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    # What a caller's own sampler returns may have any shape and integer type.
    sampled = greedy(logits) if row.sampler is greedy else row.sampler(logprobs)
    token = sampled.reshape(1).astype(mx.uint32)
    return token, () if row.observer is None else row.observer(logprobs, token)
