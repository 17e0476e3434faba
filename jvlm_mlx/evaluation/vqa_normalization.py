"""The VQA challenge's normalization of short answers, as the published scorers apply it."""

import re

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
