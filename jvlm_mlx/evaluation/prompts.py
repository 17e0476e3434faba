"""Questions as prompts, in two styles: the paper's and VLMEvalKit's own.

The paper asked in the style of the training data; its exact layout is not published, and `paper` is
the likely one. `vlmevalkit` is what VLMEvalKit asks by default. A run records which was used.
"""

import re
from collections.abc import Callable, Sequence

from ..errors import DataError
from .benchmarks import Benchmark
from .cells import Row, is_given, options_of, text_of

PAPER, VLMEVALKIT = "paper", "vlmevalkit"
STYLES = (PAPER, VLMEVALKIT)

Part = str | int
"""A part of a prompt: text, or the number of an image."""

_ONE_LETTER = "Return only the letter of the best answer option"
_BRIEFLY = "Respond very briefly."
_NUMBERED_IMAGE = re.compile(r"<image (\d)>")
_MARKED_IMAGE = "<image>"


def _option_lines(row: Row) -> str:
    return "".join(f"{letter}. {text}\n" for letter, text in options_of(row).items())


def _hint(row: Row) -> str:
    return f"Hint: {text_of(row['hint'])}\n" if is_given(row, "hint") else ""


def _question(row: Row) -> str:
    return text_of(row["question"])


def _paper_choice(row: Row) -> str:
    options = _option_lines(row)
    if not options:
        return f"{_hint(row)}{_question(row)} {_BRIEFLY}"
    return f"{_hint(row)}{_question(row)}\n{options}{_ONE_LETTER}"


def _paper_open(row: Row) -> str:
    return f"{_question(row)} {_BRIEFLY}"


def _choice(row: Row) -> str:
    options = _option_lines(row)
    prompt = f"{_hint(row)}Question: {_question(row)}\n"
    if options:
        prompt += f"Options:\n{options}Please select the correct answer from the options above. \n"
    return prompt


def _marked_choice(row: Row) -> str:
    return (
        f"{_question(row)}\n{_option_lines(row)}"
        "Answer with the option's letter from the given choices directly."
    )


def _open(row: Row) -> str:
    return f"{_question(row)}\nAnswer the question using a single word or phrase."


def _multilingual(row: Row) -> str:
    return (
        f"{_question(row)}\n"
        "Answer the question using a word or phrase in the language of the question."
    )


_TEXTS: dict[tuple[str, str], Callable[[Row], str]] = {
    (PAPER, "choice"): _paper_choice,
    (PAPER, "marked_choice"): _paper_choice,
    (PAPER, "vqa"): _paper_open,
    (PAPER, "multilingual"): _paper_open,
    (PAPER, "plain"): _question,
    (VLMEVALKIT, "choice"): _choice,
    (VLMEVALKIT, "marked_choice"): _marked_choice,
    (VLMEVALKIT, "vqa"): _open,
    (VLMEVALKIT, "multilingual"): _multilingual,
    (VLMEVALKIT, "plain"): _question,
}


def prompt_parts(benchmark: Benchmark, row: Row, images: int, style: str) -> list[Part]:
    """Return the parts of a question's prompt, in order: texts, and numbers of images from 0.

    Args:
        benchmark: which says how it is asked and where its images go.
        row: the question's cells.
        images: how many images the question has.
        style: `paper` or `vlmevalkit`.

    Raises:
        DataError: the question names an image that it does not have.
    """
    text = _TEXTS[style, benchmark.prompt](row)
    everything: list[Part] = [*range(images), text]
    if benchmark.images == "numbered":
        return _numbered(text, images, row) or everything
    if benchmark.images == "marked":
        return _marked(text, images)
    return everything


def _numbered(text: str, images: int, row: Row) -> list[Part]:
    """MMMU: image k where the text says `<image k>`; nothing if it says so nowhere."""
    segments = _NUMBERED_IMAGE.split(text)
    parts: list[Part] = []
    for place, segment in enumerate(segments):
        if place % 2 == 0:
            parts.append(segment)
        elif 1 <= int(segment) <= images:
            parts.append(int(segment) - 1)
        else:
            raise DataError(
                f"question {row['index']}: says <image {segment}> and has {images} image(s)"
            )
    return _without_empty(parts) if len(segments) > 1 else []


def _marked(text: str, images: int) -> list[Part]:
    """MuirBench: the next image at each `<image>`; what has no place goes in front."""
    segments = text.split(_MARKED_IMAGE)
    placed = min(len(segments) - 1, images)
    parts: list[Part] = [*range(placed, images), segments[0]]
    for number, segment in enumerate(segments[1:]):
        if number < placed:
            parts.append(number)
        parts.append(segment)
    return _without_empty(parts)


def _without_empty(parts: Sequence[Part]) -> list[Part]:
    return [part for part in parts if part != ""]
