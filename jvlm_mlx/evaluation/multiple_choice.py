"""Which option a free answer names, by the rules that published multiple choice scores follow."""

import re
from collections.abc import Mapping

_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_API_FAILURE = "Failed to obtain answer via API"
_PUNCTUATION_TO_SPACE = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_ANSWER_IS = re.compile(r"(?:correct\s+)?answer\s+is\s+\**([ABCD])\**", re.IGNORECASE)
_LAST_TOKENS = 5
"""A letter counts where fewer than this many tokens, itself included, are left of the answer."""

NONE_OF_THEM = "Z"


def option_of(answer: str, options: Mapping[str, str]) -> str | None:
    """Return the letter of the option that an answer names.

    Args:
        answer: what the model said.
        options: text of each option by its letter, A to Z.

    Returns:
        A letter of `options`; `Z` if the answer says that it is none of them or refuses; None if
        the answer cannot be understood. The last two are wrong answers.
    """
    return _by_letter(answer, options) or _by_text(answer, options)


def _by_letter(answer: str, options: Mapping[str, str]) -> str | None:
    if _API_FAILURE in answer:
        return None
    if any(refusal in answer for refusal in _REFUSALS):
        return NONE_OF_THEM
    tokens = answer.translate(_PUNCTUATION_TO_SPACE).split()
    named = [letter for letter in options if letter in tokens]
    if len(named) == 1:
        if tokens.index(named[0]) > len(tokens) - _LAST_TOKENS:
            return named[0]
    elif not named and NONE_OF_THEM in tokens:
        return NONE_OF_THEM
    match = _ANSWER_IS.search(answer)
    if match and match[1].upper() in options:
        return match[1].upper()
    return None


def _by_text(answer: str, options: Mapping[str, str]) -> str | None:
    answer = answer.lower()
    if len(answer) > 2 * sum(len(text) for text in options.values()):
        return None
    named = [letter for letter, text in options.items() if text.lower() in answer]
    return named[0] if len(named) == 1 else None
