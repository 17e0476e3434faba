"""How well an open answer agrees with the reference answers: one function per published rule.

`normalized` is the VQA challenge's normalization of short answers.
"""

import re
from collections.abc import Sequence

_MAX_RELATIVE_CHANGE = 0.05
_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_IGNORED = (re.compile(","), re.compile(r"\$"), re.compile(r"(?s).*#### "), re.compile(r"\.$"))
_MIN_SIMILARITY = 0.5
_ANSWERS_FOR_FULL_SCORE = 3
FORMULA_CATEGORY = "Handwritten Mathematical Expression Recognition"

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"(?<!\d)\.(?!\d)")
_MAX_PERIODS = 32
"""The published code passes `re.UNICODE` where `re.sub` takes its count, and that flag is 32."""
_ARTICLES = {"a", "an", "the"}
_NUMBERS = ("none zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_DIGITS = {word: str(digit) for digit, words in enumerate(_NUMBERS) for word in words.split()} | {
    "ten": "10"
}

# Each contraction is found in the answer with one of its apostrophes left out.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
    might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've
"""


def _spellings() -> dict[str, str]:
    spellings = {}
    for contraction in _CONTRACTIONS.split():
        for place, character in enumerate(contraction):
            if character == "'":
                spellings[contraction[:place] + contraction[place + 1 :]] = contraction
    # The published table has this one the wrong way around.
    return spellings | {"somebody'd": "somebodyd"}


_CONTRACTION_OF = _spellings()


def without_punctuation(text: str) -> str:
    """Return a text with its punctuation removed, or replaced by spaces inside words."""
    joined = bool(_COMMA_IN_NUMBER.search(text))
    result = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if beside_space or joined else " ")
    return _PERIOD.sub("", result, count=_MAX_PERIODS)


def normalized(answer: str) -> str:
    """Return an answer without punctuation and articles, digits for numbers, apostrophes put in."""
    text = without_punctuation(answer.replace("\n", " ").replace("\t", " ").strip())
    words = (_DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTION_OF.get(word, word) for word in words if word not in _ARTICLES)


def relaxed_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """ChartQA: 1 if a number is within 5 % of an answer, or if the texts agree without case."""
    return float(any(_relaxed_match(prediction.strip(), answer) for answer in answers))


def _relaxed_match(prediction: str, target: str) -> bool:
    predicted_number, target_number = _number(prediction), _number(target)
    # A target of 0 has no relative change, so it is compared as text.
    if predicted_number is not None and target_number:
        change = abs(predicted_number - target_number) / abs(target_number)
        return change <= _MAX_RELATIVE_CHANGE
    return prediction.lower() == target.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def anls(prediction: str, answers: Sequence[str]) -> float:
    """DocVQA, InfoVQA: 1 - normalized edit distance to the nearest answer; below 0.5, 0."""
    similarity = max((1 - _normalized_distance(prediction, a) for a in answers), default=0.0)
    return 0.0 if similarity < _MIN_SIMILARITY else similarity


def _normalized_distance(prediction: str, answer: str) -> float:
    # The published code measures the longer text in upper case, where ß has two characters.
    longest = max(len(answer.upper()), len(prediction.upper()))
    if longest == 0:
        return 0.0
    distance = edit_distance(" ".join(answer.lower().split()), " ".join(prediction.lower().split()))
    return distance / longest


def edit_distance(first: str, second: str) -> int:
    """Return the Levenshtein distance: insertions, deletions and substitutions of characters."""
    if len(first) > len(second):
        first, second = second, first
    distances = list(range(len(first) + 1))
    for row, character in enumerate(second, 1):
        diagonal, distances[0] = distances[0], row
        for column, other in enumerate(first, 1):
            changed = diagonal + (character != other)
            diagonal = distances[column]
            distances[column] = min(changed, diagonal + 1, distances[column - 1] + 1)
    return distances[-1]


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """TextVQA: mean over the answers of min(1, how many of the others agree / 3)."""
    if not answers:
        return 0.0
    predicted = normalized(prediction)
    agrees = [normalized(answer) == predicted for answer in answers]
    # One value per number of agreeing others, averaged in the order of the answers.
    scores = [min(1.0, (sum(agrees) - own) / _ANSWERS_FOR_FULL_SCORE) for own in agrees]
    return sum(scores) / len(scores)


def contains_answer(prediction: str, answers: Sequence[str], category: str) -> float:
    """OCRBench: 1 if the prediction contains an answer; formulas without spaces, with case."""

    def simplified(text: str) -> str:
        if category == FORMULA_CATEGORY:
            return text.strip().replace("\n", " ").replace(" ", "")
        return text.lower().strip().replace("\n", " ")

    predicted = simplified(prediction)
    return float(any(simplified(answer) in predicted for answer in answers))


def contains_multilingual(prediction: str, answer: str) -> float:
    """MTVQA: 1 if the prediction contains the answer, without case and periods."""

    def simplified(text: str) -> str:
        return text.strip().lower().replace(".", "")

    return float(simplified(answer) in simplified(prediction))


def yes_or_no(prediction: str) -> str:
    """Return Yes or No if exactly one of the words is in the answer, else Unknown."""
    words = without_punctuation(prediction.lower()).split()
    said = [word for word in ("yes", "no") if word in words]
    return said[0].capitalize() if len(said) == 1 else "Unknown"


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
