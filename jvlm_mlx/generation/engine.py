"""The decode loop: rows, each with its own prompt behind it, grow token by token.

Nothing here knows of texts, requests or threads; all of it runs on the worker of `device.py`.
The loop is pulled: a step hands out one token of every row, and by then the step after it is
under way on the device, so that the host's work between two steps costs nothing. Rows join and
leave between steps. They may differ in everything; rows with plain KV caches share one batched
cache, and so one pass through the decoder.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import mlx.core as mx

from ..model import Model
from .kv_cache import can_batch, joined, keep_rows
from .sampling import LogitsProcessor, Sampler, greedy

Observer = Callable[[mx.array, mx.array], tuple[mx.array, ...]]
"""From log probabilities (1, vocabulary) and the chosen token (1,) to what is wanted of them."""


class Grammar(Protocol):
    """What a row may say next, in view of what it has said."""

    def mask(self, logits: mx.array) -> mx.array:
        """Return logits (1, vocabulary) with those of forbidden tokens at minus infinity."""
        ...

    def accept(self, token: int) -> None:
        """Take note of the token that was chosen."""
        ...


@dataclass(eq=False)
class Row:
    """One answer that grows."""

    max_tokens: int
    """After so many tokens it leaves by itself."""
    sampler: Sampler = greedy
    processors: Sequence[LogitsProcessor] = ()
    history: mx.array | None = None
    """(N,) text tokens so far, for the processors; None without any."""
    observer: Observer | None = None
    """What is to be handed out beside each token; computed with it, so nothing waits for it."""
    grammar: Grammar | None = None
    error: Exception | None = None
    """What its own sampler, processors or grammar raised; others continue. It must be removed."""
    cancelled: bool = False
    """May be set from any thread, by a finalizer too: the row leaves before the next step."""


class Token(NamedTuple):
    """What a step gives for one row."""

    row: Row
    token: int
    observed: tuple[mx.array, ...]
    """Of the row's observer, evaluated; empty without one."""


class Engine:
    """Rows that are decoded together; see the module for how.

    Args:
        model: the model.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._groups: list[_Group] = []

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
        group = _Group(self._model, list(rows), cache, logits)
        for other in self._groups:
            if other.can_take(group):
                other.take(group)
                return
        self._groups.append(group)

    def step(self) -> list[Token]:
        """Return the next token of every row."""
        self.remove([row for row in self.rows if row.cancelled])
        for group in self._groups:
            group.launch()
        tokens = [token for group in self._groups for token in group.collect()]
        self.remove([row for row in self.rows if row.max_tokens == 0])
        return tokens

    def remove(self, rows: Sequence[Row]) -> None:
        """Let rows leave; those that have left already are passed over."""
        leaving = {id(row) for row in rows}
        for group in self._groups if leaving else ():
            group.keep([i for i, row in enumerate(group.rows) if id(row) not in leaving])
        self._groups = [group for group in self._groups if group.rows]


class _Group:
    """Rows that go through the decoder together."""

    def __init__(self, model: Model, rows: list[Row], cache: list[Any], logits: mx.array) -> None:
        self.rows = rows
        self._model = model
        self._cache = cache
        # Tokens that were sampled last. The cache has everything before them.
        self._tokens, self._observed = self._sample(logits)
        self._current = self._tokens, self._observed
        self._handed_out = False

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
        if self._looks_ahead and any(row.max_tokens > 1 for row in self.rows):
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
        if all(row.sampler is greedy and _takes_logits_as_they_are(row) for row in self.rows):
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


def _takes_logits_as_they_are(row: Row) -> bool:
    return not row.processors and row.observer is None and row.grammar is None


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
