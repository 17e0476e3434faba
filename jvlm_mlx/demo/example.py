"""What the demo model learns from and is measured on: a picture and its questions."""

from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image


class Turn(NamedTuple):
    """One question with its only right answer; needs no other turn."""

    question: str
    answer: str
    task: str


@dataclass(frozen=True)
class Example:
    """A picture with questions about it, all in one language."""

    task: str
    """The task of the first turn."""
    language: str
    picture: Image.Image | None
    """RGB; None for questions without a picture."""
    turns: tuple[Turn, ...]
    """One to five, the first at random among those of `task`."""
    caption: str
    """All that is in the picture, in a fixed order; empty without a picture."""
