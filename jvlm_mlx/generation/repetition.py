"""Notices an answer that goes round in circles.

A model that repeats itself continues until the last token it is allowed. But tables, lists, JSON
and numbers repeat themselves too, and must never be cut short: an empty form has many equal
lines, a matrix many zeros. So what repeats must be prose to be taken for a loop soon, and
anything else only when no reasonable document would continue like that.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np

MAX_PERIOD = 128
"""Longest cycle that is looked for, in tokens."""
PROSE_TOKENS, PROSE_REPEATS = 160, 8
"""A sentence that repeats at least so often, and over at least so many tokens, is a loop."""
OTHER_TOKENS, OTHER_REPEATS = 1024, 32
"""The same for anything else."""

_PERIODS = np.arange(1, MAX_PERIOD + 1)
_PROSE_LIMITS = np.maximum(PROSE_TOKENS, PROSE_REPEATS * _PERIODS)
_OTHER_LIMITS = np.maximum(OTHER_TOKENS, OTHER_REPEATS * _PERIODS)
"""Tokens that cycles of each period must cover to be taken for a loop."""

_MIN_LETTERS = 12
_LETTERS_PER_LINE = 40
"""A line with fewer is a line of a list."""
_LINE_END = re.compile(r"\n\s*")
_STRUCTURE = re.compile(r"[|{}\[\]<>\t_=]|:\s*\d")


class RepetitionGuard:
    """Watches the tokens of one answer.

    Args:
        decode: from tokens to their text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._equal = np.zeros(MAX_PERIOD, np.int64)
        """How many of the last tokens are equal to those 1, 2, 3 ... places before them."""

    def add(self, token: int) -> bool:
        """Take a token; return whether the answer is in a loop."""
        before = np.array(self._tokens[: -MAX_PERIOD - 1 : -1], np.int64)
        self._tokens.append(token)
        self._equal[len(before) :] = 0
        self._equal[: len(before)] += 1
        self._equal[: len(before)][before != token] = 0
        # A cycle's first turn is equal to nothing before it.
        covered = self._equal + _PERIODS
        if np.any(covered >= _OTHER_LIMITS):
            return True
        suspects = covered >= _PROSE_LIMITS
        return bool(suspects.any()) and self._is_prose(int(_PERIODS[suspects][0]))

    def _is_prose(self, period: int) -> bool:
        """Return whether the last cycle reads like sentences."""
        text = self._decode(self._tokens[-period:])
        letters = sum(character.isalpha() for character in text)
        visible = sum(not character.isspace() for character in text)
        # In two cycles, for a blank line may be cut where one ends.
        lines = len(_LINE_END.findall(text * 2)) / 2
        return (
            letters >= max(_MIN_LETTERS, visible * 0.7)
            and letters >= _LETTERS_PER_LINE * lines
            and _STRUCTURE.search(text) is None
        )
