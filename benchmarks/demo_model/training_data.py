"""Writes what the demo model is trained on: images, rows of questions, and mixtures.

The release began with a tower and a decoder that had learned elsewhere; in place of that stand
transcripts of crowded pages. Captions of all images are the first stage. In the second are
questions, pages, captions, and texts without an image, and at its end hardly anything but
questions, for one transcript outweighs many short answers; what learns last are places.
Held-out rows have images of their own.
"""

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.utils import tqdm

from jvlm_mlx.demo.example import Example
from jvlm_mlx.demo.phrases import PHRASES
from jvlm_mlx.demo.tasks import examples
from jvlm_mlx.errors import DataError

from .maker_command import positive, run_command
from .transcription_pages import PAGES, page_at

SOURCES = {
    "scenes": ("color", "shape", "count", "position"),
    "print": ("number", "word", "small_number"),
    "charts": ("bar_value", "bar_largest"),
    "forms": ("form",),
}
"""Tasks by the file their rows go to."""

# In turn. What takes longest to learn comes more than once.
_IMAGE_TASKS = (
    "color", "number", "form", "count", "small_number", "bar_value", "position", "word",
    "form", "shape", "small_number", "bar_largest", "count", "word", "form", "bar_value",
)  # fmt: skip
_IMAGES_PER_PAGE = 6
_TEXTS_PER_IMAGE = 5
_TEXT_TASKS = ("text_only",)
_CAPTIONS, _SCENE_CAPTIONS, _TEXT, _VALID = "captions", "scene_captions", "text", "valid"
_SOURCE_OF = {task: source for source, tasks in SOURCES.items() for task in tasks}
_ALL_PAGES = dict.fromkeys(PAGES, 1.0)
_ALL_TASKS = {
    source: float(sum(task in tasks for task in _IMAGE_TASKS)) for source, tasks in SOURCES.items()
}
_MIXTURES: dict[str, dict[str, float]] = {
    "pages": _ALL_PAGES,
    "stage1": {**_ALL_PAGES, _CAPTIONS: 4.0, _TEXT: 1.0},
    "stage2": {**_ALL_TASKS, **_ALL_PAGES, _CAPTIONS: 4.0, _TEXT: 1.0},
    "questions": {
        "scenes": 8.0, "print": 5.0, "charts": 4.0, "forms": 3.0,
        "print_page": 0.5, "small_print_page": 0.5, _TEXT: 1.0,
    },
    "places": {
        "scenes": 8.0, _SCENE_CAPTIONS: 5.0, "print": 4.0, "charts": 2.0, "forms": 4.0,
        "small_print_page": 0.5, _TEXT: 1.0,
    },
}  # fmt: skip
"""Weights of the sources by file."""


def write_data(
    output: Path, images: int, seed: int, held_out: int, *, show_progress: bool = False
) -> None:
    """Write a folder of training data, whole or not at all.

    Args:
        output: the new folder.
        images: how many to train on.
        seed: the same gives the same rows and images.
        held_out: how many further images, none of them trained on, to validate with.
        show_progress: whether to show a bar on standard error.

    Raises:
        DataError: there is something at `output`, or it cannot be written.
    """
    if output.exists() or output.is_symlink():
        raise DataError(f"{output} exists already; give another path or remove it first")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that it only needs to be renamed.
        with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as work:
            folder = Path(work) / "data"
            _write_folder(folder, images, seed, held_out, show_progress)
            folder.rename(output)
    except OSError as error:
        raise DataError(f"{output} cannot be written: {error.strerror or error}") from error


def _write_folder(folder: Path, images: int, seed: int, held_out: int, show_progress: bool) -> None:
    pages = -(-images // _IMAGES_PER_PAGE)
    texts = -(-images // _TEXTS_PER_IMAGE)
    rows: dict[str, list[dict[str, Any]]] = {
        name: [] for name in (*SOURCES, *PAGES, _CAPTIONS, _SCENE_CAPTIONS, _TEXT)
    }
    valid = []
    (folder / "images").mkdir(parents=True)
    total = pages * len(PAGES) + images + texts + held_out
    with tqdm(total=total, unit="row", leave=False, disable=not show_progress) as bar:
        for kind, place in itertools.product(PAGES, range(pages)):
            example = page_at(seed, place, kind)
            image = _save(example, folder, f"{kind}-{place + 1:06d}")
            rows[kind].append(caption_row(example, image))
            bar.update()
        for place, example in enumerate(examples(seed, images, _IMAGE_TASKS)):
            image = _save(example, folder, f"{place + 1:06d}")
            source, caption = _SOURCE_OF[example.task], caption_row(example, image)
            rows[source].append(question_row(example, image))
            rows[_CAPTIONS].append(caption)
            if source == "scenes":
                rows[_SCENE_CAPTIONS].append(caption)
            bar.update()
        for example in examples(seed, texts, _TEXT_TASKS):
            rows[_TEXT].append(question_row(example, None))
            bar.update()
        for place, example in enumerate(examples(seed, held_out, _IMAGE_TASKS, held_out=True)):
            image = _save(example, folder, f"valid-{place + 1:06d}")
            valid.append(question_row(example, image))
            bar.update()
    for name, lines in rows.items():
        _write_rows(folder / f"{name}.jsonl", lines)
    _write_rows(folder / f"{_VALID}.jsonl", valid)
    for file, weights in _MIXTURES.items():
        # A few images do not ask everything.
        with_rows = {name: weight for name, weight in weights.items() if rows[name]}
        _write_mixture(folder / f"{file}.json", with_rows)


def _kind(source: str) -> str:
    if source == _TEXT:
        return "text"
    return "instructions" if source in SOURCES else "captions"


def question_row(example: Example, image: str | None) -> dict[str, Any]:
    """Return all turns of an example as one conversation.

    Args:
        example: with an image or without.
        image: where its image is, seen from the file of rows.
    """
    messages: list[dict[str, Any]] = []
    for turn in example.turns:
        content: Any = turn.question
        if image is not None and not messages:
            content = _with_image(turn.question, image)
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": turn.answer})
    return {"messages": messages, "task": example.task, "language": example.language}


def caption_row(example: Example, image: str) -> dict[str, Any]:
    """Return the request to describe an example's image, and its caption."""
    request = PHRASES[example.language].describe
    messages = [
        {"role": "user", "content": _with_image(request, image)},
        {"role": "assistant", "content": example.caption},
    ]
    return {"messages": messages, "task": "caption", "language": example.language}


def _with_image(text: str, image: str) -> list[dict[str, str]]:
    return [{"type": "image", "path": image}, {"type": "text", "text": text}]


def _save(example: Example, folder: Path, name: str) -> str:
    assert example.image is not None
    path = f"images/{name}.png"
    example.image.save(folder / path)
    return path


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_mixture(path: Path, weights: Mapping[str, float]) -> None:
    entries = [
        {"name": name, "path": f"{name}.jsonl", "kind": _kind(name), "weight": weight}
        for name, weight in weights.items()
    ]
    path.write_text(json.dumps({"sources": entries}, indent=1) + "\n", encoding="utf-8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument("output", type=Path, metavar="OUT", help="folder to write; must be new")
    parser.add_argument("--images", type=positive, default=48000, help="images to train on")
    parser.add_argument("--held-out", type=positive, default=500, help="images to validate with")
    parser.add_argument("--seed", type=int, default=0, help="the same gives the same data")


def run(arguments: argparse.Namespace) -> int:
    """Write the data, and return the exit code."""
    write_data(
        arguments.output,
        arguments.images,
        arguments.seed,
        arguments.held_out,
        show_progress=sys.stderr.isatty(),
    )
    return 0


if __name__ == "__main__":
    sys.exit(
        run_command("python -m benchmarks.demo_model.training_data", __doc__, add_arguments, run)
    )
