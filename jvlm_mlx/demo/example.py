"""What the demo model learns from and is measured on: an image and its questions."""

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
    """An image with questions about it, all in one language."""

    task: str
    """The task of the first turn."""
    language: str
    image: Image.Image | None
    """RGB; None for questions without an image."""
    turns: tuple[Turn, ...]
    """One to five, the first at random among those of `task`."""
    caption: str
    """All that is in the image, in a fixed order; empty without an image."""
