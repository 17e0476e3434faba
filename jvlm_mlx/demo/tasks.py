"""All tasks of the demo, and a fair mixture of their examples."""

import hashlib
from collections.abc import Iterator, Sequence
from random import Random

from PIL import Image

from . import bar_chart, form, printed, scenes, text_questions
from .example import Example, Turn
from .phrases import LANGUAGES

__all__ = [
    "IMAGE_TASKS",
    "LANGUAGES",
    "TASKS",
    "example_at",
    "examples",
    "is_held_out",
    "make_example",
]

IMAGE_TASKS = (*scenes.TASKS, *printed.TASKS, *bar_chart.TASKS, *form.TASKS)
TASKS = (*IMAGE_TASKS, *text_questions.TASKS)
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
    image, caption = None, ""
    if task in text_questions.TASKS:
        asked = [text_questions.text_turn(language, random) for _ in range(random.randint(1, 3))]
        turns = list(dict.fromkeys(asked))
    elif task in scenes.TASKS:
        image, things = scenes.make_scene(task, random)
        turns = scenes.thing_turns(things, language) + scenes.count_turns(things, language)
        caption = scenes.describe_things(things, language)
    elif task == "small_number":
        image, turns, caption = printed.make_small_number(language, random)
    elif task in printed.TASKS:
        image, turns, caption = printed.make_large_print(task, language, random)
    elif task in bar_chart.TASKS:
        image, turns, caption = bar_chart.make_chart(language, random)
    else:
        image, turns, caption = form.make_form(language, random)
    return Example(task, language, image, _arrange(turns, task, random), caption)


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
        if example.image is None or is_held_out(example.image) == held_out:
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
        held_out: whether the images are those that no training sees; whatever the seeds,
            a series for training and one held out have no image in common.
    """
    return (example_at(seed, place, tasks, languages, held_out=held_out) for place in range(count))


def is_held_out(image: Image.Image) -> bool:
    """Say whether an image is never trained on; its pixels decide, for one in four."""
    return hashlib.blake2b(image.tobytes(), digest_size=1).digest()[0] % 4 == 0


def _arrange(turns: list[Turn], task: str, random: Random) -> tuple[Turn, ...]:
    """Put a turn of `task` first and a few of the others, all by chance, behind it."""
    first = random.choice([turn for turn in turns if turn.task == task])
    others = [turn for turn in turns if turn is not first]
    return (first, *random.sample(others, min(len(others), MAX_TURNS - 1)))
