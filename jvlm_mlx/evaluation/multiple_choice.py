"""Which of several choices an answer is: by VLMEvalKit's rules for what a text names, and by
lm-eval's for likelihoods of choices and for MMLU-Pro."""

import re
from collections.abc import Mapping

from ..config.json_file import parse_json, quoted
from ..errors import DataError
from .cells import LETTERS, Row, list_of, text_of

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
_LETTER = re.compile(r"answer is \(?([A-J])\)?")


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


def most_likely(row: Row, prediction: str, *, normalized: bool) -> int:
    """Return the place of the most probable choice, of log-likelihoods in a JSON list.

    `normalized` divides each by the characters of the choice (acc_norm).

    Raises:
        DataError: there are not as many numbers as choices, or more choices than letters.
    """
    choices = list_of(row["choices"])
    if not 0 < len(choices) <= len(LETTERS):
        raise DataError(
            f"question {quoted(row['index'])} has {len(choices)} choices; 1 to {len(LETTERS)}"
            " have letters"
        )
    try:
        logprobs = [float(number) for number in parse_json(prediction)]
    except (ValueError, TypeError, OverflowError):
        logprobs = []
    if len(logprobs) != len(choices):
        raise DataError(
            f"question {quoted(row['index'])}: the prediction must be a list of {len(choices)}"
            f" log-likelihoods, found {prediction[:60]!r}"
        )
    lengths = [len(choice) if normalized else 1 for choice in choices]
    scores = [logprob / max(1, length) for logprob, length in zip(logprobs, lengths, strict=True)]
    return max(range(len(scores)), key=scores.__getitem__)


def letter_in(text: str) -> str:
    """Return the letter that a text of MMLU-Pro calls the answer; empty if none."""
    found = _LETTER.search(text)
    return found[1] if found else ""


def gold_place(row: Row) -> int:
    """Return the place of the right choice among a row's choices.

    Raises:
        DataError: the answer is no letter.
    """
    answer = text_of(row["answer"])
    if len(answer) != 1 or answer not in LETTERS:
        raise DataError(
            f"question {quoted(row['index'])}: the answer must be a letter, found {quoted(answer)}"
        )
    return LETTERS.index(answer)
