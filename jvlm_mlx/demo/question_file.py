"""The demo's tasks as a benchmark: held-out images and questions in a TSV like VLMEvalKit's."""

import base64
import csv
import io
from pathlib import Path

from ..errors import DataError
from ..files import atomic_file
from .tasks import IMAGE_TASKS, LANGUAGES, example_at

COLUMNS = ("index", "question", "answer", "category", "split", "image")
"""Category is the task, split the language."""


def write_questions(path: Path, count: int, seed: int = 0) -> None:
    """Write a file of questions whose images no training of the demo saw.

    Args:
        path: of the file; it appears when it is complete.
        count: how many, the tasks in turn.
        seed: the same gives the same file.

    Raises:
        DataError: the file cannot be written.
    """
    with (
        atomic_file(path, DataError) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(COLUMNS)
        for place in range(count):
            example = example_at(seed, place, IMAGE_TASKS, LANGUAGES, held_out=True)
            turn = example.turns[0]
            assert example.image is not None  # these tasks have one
            image = io.BytesIO()
            example.image.save(image, "PNG")
            encoded = base64.b64encode(image.getvalue()).decode()
            writer.writerow(
                (place, turn.question, turn.answer, turn.task, example.language, encoded)
            )
