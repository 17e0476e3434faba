"""All tasks of the demo, and a fair mixture of their examples."""

import hashlib
from collections.abc import Iterator, Sequence
from random import Random

from PIL import Image

from . import bar_chart, form, printed, scenes, text_only
from .example import Example, Turn
from .pages import make_page
from .phrases import LANGUAGES

__all__ = ["LANGUAGES", "TASKS", "example_at", "examples", "is_held_out", "make_example", "page_at"]

TASKS = (*scenes.TASKS, *printed.TASKS, *bar_chart.TASKS, *form.TASKS, *text_only.TASKS)
MAX_TURNS = 5


def make_example(task: str, language: str, random: Random) -> Example:
    """Return a new example whose first turn is of this task.

    Args:
        task: one of `TASKS`.
        language: one of `LANGUAGES`.
        random: all chance comes from here; the same state gives the same example.

    Raises:
        ValueError: there is no such task or language.
    """
    if task not in TASKS or language not in LANGUAGES:
        raise ValueError(f"there is no task {task!r} in language {language!r}")
    picture, caption = None, ""
    if task in text_only.TASKS:
        asked = [text_only.text_turn(language, random) for _ in range(random.randint(1, 3))]
        turns = list(dict.fromkeys(asked))
    elif task in scenes.TASKS:
        picture, things = scenes.make_scene(task, random)
        turns = scenes.thing_turns(things, language) + scenes.count_turns(things, language)
        caption = scenes.describe_things(things, language)
    elif task == "small_number":
        picture, turns, caption = printed.make_small_number(language, random)
    elif task in printed.TASKS:
        picture, turns, caption = printed.make_large_print(task, language, random)
    elif task in bar_chart.TASKS:
        picture, turns, caption = bar_chart.make_chart(language, random)
    else:
        picture, turns, caption = form.make_form(language, random)
    return Example(task, language, picture, _arrange(turns, task, random), caption)


def example_at(
    seed: int,
    place: int,
    tasks: Sequence[str] = TASKS,
    languages: Sequence[str] = LANGUAGES,
    *,
    held_out: bool = False,
) -> Example:
    """Return one example of the series that `examples` gives, without those before it."""
    random = Random(f"jvlm-mlx demo, seed {seed}, example {place}")
    task, language = tasks[place % len(tasks)], random.choice(languages)
    while True:
        example = make_example(task, language, random)
        if example.picture is None or is_held_out(example.picture) == held_out:
            return example


def page_at(seed: int, place: int, kind: str) -> Example:
    """Return one page of the series of its kind, none of them held out."""
    random = Random(f"jvlm-mlx demo, seed {seed}, {kind} {place}")
    while True:
        example = make_page(kind, random)
        if example.picture is not None and not is_held_out(example.picture):
            return example


def examples(
    seed: int,
    count: int,
    tasks: Sequence[str] = TASKS,
    languages: Sequence[str] = LANGUAGES,
    *,
    held_out: bool = False,
) -> Iterator[Example]:
    """Return `count` examples, the tasks in turn and each in a language by chance.

    Args:
        seed: the same gives the same series.
        count: how many.
        tasks: those to take turns.
        languages: those to choose from.
        held_out: whether the pictures are those that no training sees; whatever the seeds,
            a series for training and one held out have no picture in common.
    """
    return (example_at(seed, place, tasks, languages, held_out=held_out) for place in range(count))


def is_held_out(picture: Image.Image) -> bool:
    """Say whether a picture is never trained on; its pixels decide, for one in four."""
    return hashlib.blake2b(picture.tobytes(), digest_size=1).digest()[0] % 4 == 0


def _arrange(turns: list[Turn], task: str, random: Random) -> tuple[Turn, ...]:
    """Put a turn of `task` first and a few of the others, all by chance, behind it."""
    first = random.choice([turn for turn in turns if turn.task == task])
    others = [turn for turn in turns if turn is not first]
    return (first, *random.sample(others, min(len(others), MAX_TURNS - 1)))
