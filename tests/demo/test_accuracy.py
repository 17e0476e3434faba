import dataclasses

import pytest

import jvlm_mlx
from benchmarks.demo_model import accuracy
from benchmarks.demo_model.accuracy import (
    Accuracy,
    Score,
    WrongAnswer,
    greedy_answerer,
    measure,
    measure_accuracy,
)
from benchmarks.demo_model.maker_command import run_command
from jvlm_mlx import generate
from jvlm_mlx.demo.tasks import LANGUAGES, TASKS, example_at, examples, is_held_out

SMALL = {"count": 20, "tasks": ("color", "count", "text_only")}


def right(batch):
    return [f" {example.turns[0].answer}\n" for example in batch]


def test_right_answers_all_count():
    found = measure(right, **SMALL)
    assert found.of() == Score(60, 60)
    assert found.wrong == ()
    for task in SMALL["tasks"]:
        assert found.of(task=task) == Score(20, 20)


def test_wrong_answers_count_where_they_are_wrong():
    def answer(batch):
        # Right in everything but German colors.
        return [
            "?" if (one.task, one.language) == ("color", "de") else one.turns[0].answer
            for one in batch
        ]

    found = measure(answer, **SMALL)
    asked = 20 // len(LANGUAGES)  # languages take turns
    assert found.of(task="color", language="de") == Score(0, asked)
    assert found.of(task="color") == Score(20 - asked, 20)
    assert found.of(task="count") == Score(20, 20)
    assert found.of(language="de").right == found.of(language="de").asked - asked
    assert found.of(language="en").right == found.of(language="en").asked
    assert len(found.wrong) == asked
    one = found.wrong[0]
    assert (one.task, one.language, one.found) == ("color", "de", "?")
    assert one.question.startswith("Welche Farbe hat")


@pytest.mark.parametrize("change", [str.upper, lambda answer: answer + ".", lambda _: ""])
def test_answers_count_to_the_letter(change):
    found = measure(
        lambda batch: [change(one.turns[0].answer) for one in batch],
        count=5,
        tasks=("color",),
        languages=("en",),
    )
    assert found.of() == Score(0, 5)


def test_a_missing_answer_is_no_right_one():
    with pytest.raises(ValueError, match="zip"):
        measure(lambda batch: right(batch)[:-1], count=3, tasks=("count",))


def test_questions_are_new_and_in_batches():
    batches, steps = [], []

    def answer(batch):
        batches.append(list(batch))
        return right(batch)

    measure(
        answer,
        count=10,
        tasks=("form", "number"),
        batch_size=4,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 2]
    assert [{one.task for one in batch} for batch in batches] == [{"form"}] * 3 + [{"number"}] * 3
    assert all(is_held_out(one.image) for batch in batches for one in batch)
    assert steps == [(4, 20), (8, 20), (10, 20), (14, 20), (18, 20), (20, 20)]


def test_all_tasks_and_languages_are_asked_by_default():
    found = measure(right, count=len(LANGUAGES))
    assert set(found.scores.values()) == {Score(1, 1)}
    assert {task for task, _ in found.scores} == set(TASKS)
    assert {language for _, language in found.scores} == set(LANGUAGES)


def test_the_table_has_every_score():
    scores = {
        ("color", "en"): Score(3, 4),
        ("color", "de"): Score(0, 0),
        ("form", "en"): Score(2, 2),
        ("form", "de"): Score(1, 2),
    }
    header, rule, *rows = Accuracy(scores, ()).table().splitlines()
    assert set(rule) == set("|-: ")
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in (header, *rows)] == [
        ["task", "en", "de", "all", "asked"],
        ["color", "75.0%", "-", "75.0%", "4"],
        ["form", "100.0%", "50.0%", "75.0%", "4"],
        ["all", "83.3%", "50.0%", "75.0%", "8"],
    ]


@pytest.mark.parametrize("max_crops", [None, 1])
@pytest.mark.parametrize("task", ["small_number", "text_only"])
def test_answers_together_are_those_of_generate(tiny, task, max_crops):
    model, processor = tiny
    batch = list(examples(0, 3, (task,)))
    found = greedy_answerer(model, processor, max_crops=max_crops)(batch)
    for example, text in zip(batch, found, strict=True):
        alone = generate(
            model,
            processor,
            example.turns[0].question,
            images=[] if example.image is None else example.image,
            max_tokens=accuracy._MAX_TOKENS,
            max_crops=max_crops,
        )
        assert text.strip() == alone.text.strip() != ""


def test_an_answer_ends_at_its_stop_token():
    # Of different lengths: each row ends alone, and the others are decoded to their ends.
    model, processor = jvlm_mlx.load("demo")
    batch = list(examples(0, 8, ("count", "word", "form", "text_only"), ("en",)))
    found = greedy_answerer(model, processor)(batch)
    alone = [
        generate(model, processor, one.turns[0].question, one.image, max_tokens=24) for one in batch
    ]
    assert [text.strip() for text in found] == [result.text for result in alone]
    assert {result.finish_reason for result in alone} == {"stop"}
    assert len({result.generation_tokens for result in alone}) > 1


class SeeingProcessor:
    """A processor that remembers how images were tiled."""

    def __init__(self, processor):
        self._processor = processor
        self.grids = []

    def __getattr__(self, name):
        return getattr(self._processor, name)

    def __call__(self, *arguments, **options):
        inputs = self._processor(*arguments, **options)
        self.grids += [layout.grid for (layout,) in inputs.layouts]
        return inputs


def test_without_tiles_a_image_is_one_tile(tiny, monkeypatch):
    def large(*arguments, **options):
        example = example_at(*arguments, **options)
        return dataclasses.replace(example, image=example.image.resize((400, 200)))

    monkeypatch.setattr(accuracy, "example_at", large)
    model, processor = tiny
    for without_tiles in (False, True):
        seeing = SeeingProcessor(processor)
        measure_accuracy(model, seeing, without_tiles=without_tiles, count=2, tasks=("color",))
        assert len(seeing.grids) == 2
        assert (set(seeing.grids) == {(1, 1)}) == without_tiles


def test_the_command_prints_a_table(golden_folder, capsys):
    flags = ["--model", golden_folder / "tiny", "--examples", 2, "--tasks", "count", "text_only"]
    flags += ["--languages", "en", "zh", "--without-tiles", "--wrong", 1]
    code = run_command(
        "demo.accuracy",
        accuracy.__doc__,
        accuracy.add_arguments,
        accuracy.run,
        [str(flag) for flag in flags],
    )
    assert code == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0].split() == ["|", "task", "|", "en", "|", "zh", "|", "all", "|", "asked", "|"]
    assert [line.split()[1] for line in lines[2:5]] == ["count", "text_only", "all"]
    assert lines[4].split()[-2] == "4"
    assert len(lines) == 6  # the small checkpoint of the tests answers nothing right
    assert lines[5].startswith("count ")
    assert said.err == ""


def test_a_wrong_answer_says_what_was_expected():
    found = measure(lambda batch: ["x "] * len(batch), count=1, tasks=("bar_largest",))
    (one,) = found.wrong
    assert one == WrongAnswer("bar_largest", one.language, one.question, one.expected, "x")
    assert one.expected in "ABCD"
