"""How well an open answer agrees with the reference answers: one function per published rule."""

from collections.abc import Sequence

from .vqa_normalization import normalized, without_punctuation

_MAX_RELATIVE_CHANGE = 0.05
_MIN_SIMILARITY = 0.5
_ANSWERS_FOR_FULL_SCORE = 3
FORMULA_CATEGORY = "Handwritten Mathematical Expression Recognition"


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
