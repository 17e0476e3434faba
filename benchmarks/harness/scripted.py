"""A stand-in for a model whose answers are given: what decoding does with them can be counted."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from jvlm_mlx._mlx_lm import KVCache
from jvlm_mlx.generation import device
from jvlm_mlx.generation.engine import Engine
from jvlm_mlx.generation.prompt_lookup import PromptLookup
from jvlm_mlx.generation.row import Row


class ScriptedModel:
    """Says at each position what a script has there, however many tokens go through at once.

    Args:
        script: tokens of prompt and answer.
        vocab_size: one more than the largest token.
        row_seconds: of its clock for each token of a pass beyond the first; the first takes 1.
        rounds_otherwise: whether passes over several tokens give other logits in the last bits.
    """

    def __init__(
        self,
        script: Sequence[int],
        vocab_size: int,
        *,
        row_seconds: float = 0.0,
        rounds_otherwise: bool = False,
    ) -> None:
        self.passes: list[int] = []
        """Tokens of each pass."""
        self.positions = 0
        """Most tokens that the cache had."""
        self.seconds = 0.0
        self.decoder = self
        self._script = mx.array(list(script))
        self._vocab_size = vocab_size
        self._row_seconds = row_seconds
        self._rounds_otherwise = rounds_otherwise

    def clock(self) -> float:
        """Return the time that its passes took."""
        return self.seconds

    def embedding(self, tokens: mx.array) -> mx.array:
        """Return tokens (1, L) as they are."""
        return tokens

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        """Fill the cache; return the position of each token, (1, L, 1)."""
        length, position = tokens.shape[1], cache[0].offset
        self.passes.append(length)
        self.positions = max(self.positions, position + length)
        self.seconds += 1 + self._row_seconds * (length - 1)
        for layer in cache:
            keys = tokens.reshape(1, 1, length, 1).astype(mx.float32)
            layer.update_and_fetch(keys, keys)
        return mx.arange(position, position + length).reshape(1, length, 1)

    def head(self, positions: mx.array) -> mx.array:
        """Return logits (L, vocabulary) of positions (L, 1): 1 for what comes next, else 0."""
        following = self._script[positions[:, 0] + 1]
        logits = (mx.arange(self._vocab_size) == following[:, None]).astype(mx.float32)
        return logits * (1 + 1e-6 * (self._rounds_otherwise and len(logits) > 1))


def decode(
    model: ScriptedModel, prompt: Sequence[int], count: int, lookup: PromptLookup | None = None
) -> list[int]:
    """Return an answer of `count` tokens; `passes` then has only those after the prompt."""

    def work() -> list[int]:
        cache = [KVCache()]
        hidden = model(mx.array([list(prompt)]), cache)
        model.passes.clear()
        model.seconds = 0.0
        engine, row = Engine(model), Row(count, lookup=lookup)  # type: ignore[arg-type]
        engine.add([row], cache, model.head(hidden[:, -1]))
        tokens: list[int] = []
        while engine.rows:
            tokens += [one.token for one in engine.step()]
        return tokens

    return device.run(work)
