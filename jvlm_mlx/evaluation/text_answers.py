"""Scores of text sets by lm-eval's rules: likelihoods of choices, and answers in generated text."""

import re
from collections.abc import Sequence

from ..config.json_file import parse_json, quoted
from ..errors import DataError
from .cells import LETTERS, Row, list_of, text_of

_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_IGNORED = (re.compile(","), re.compile(r"\$"), re.compile(r"(?s).*#### "), re.compile(r"\.$"))
_LETTER = re.compile(r"answer is \(?([A-J])\)?")


def most_likely(row: Row, prediction: str, *, normalized: bool) -> int:
    """Return the place of the most probable choice.

    Args:
        row: with the choices.
        prediction: their log-likelihoods, as a JSON list.
        normalized: whether each is divided by the characters of the choice (acc_norm).

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


def number_in(text: str, *, strict: bool) -> str:
    """Return GSM-8K's answer in a text: after `####`, or the last number; empty if none."""
    if strict:
        found = _STRICT.search(text)
        return found[1] if found else ""
    matches: Sequence[tuple[str, str]] = _FLEXIBLE.findall(text)
    return next((part for part in matches[-1] if part), "") if matches else ""


def numbers_agree(text: str, answer: str, *, strict: bool) -> bool:
    """Return whether GSM-8K's answer in a text is that of the reference solution."""
    return _plain(number_in(text, strict=strict)) == _plain(answer)


def _plain(number: str) -> str:
    for ignored in _IGNORED:
        number = ignored.sub("", number)
    return number.lower()


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
