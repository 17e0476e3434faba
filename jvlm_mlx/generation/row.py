"""One answer as the decode loop gets it, and the tokens that come of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import mlx.core as mx

from .prompt_lookup import PromptLookup
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
    lookup: PromptLookup | None = None
    """Drafts of the next tokens; used while the row is alone, greedy and in a plain KV cache."""
    error: Exception | None = None
    """What its own sampler, processors or grammar raised; others continue. It must be removed."""
    cancelled: bool = False
    """May be set from any thread, by a finalizer too: the row leaves before the next step."""

    @property
    def takes_argmax(self) -> bool:
        """Whether each token is the argmax of the logits as they are, and no more is wanted."""
        return (
            self.sampler is greedy
            and not self.processors
            and self.observer is None
            and self.grammar is None
        )


class Token(NamedTuple):
    """What a step gives for one row."""

    row: Row
    token: int
    observed: tuple[mx.array, ...]
    """Of the row's observer, evaluated; empty without one."""
