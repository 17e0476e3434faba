import json

import pytest
from PIL import Image

from benchmarks.demo_model import training_data
from benchmarks.demo_model.maker_command import run_command
from benchmarks.demo_model.training_data import SOURCES, caption_row, question_row, write_data
from benchmarks.demo_model.transcription_pages import PAGES
from jvlm_mlx.demo.tasks import TASKS, examples, is_held_out
from jvlm_mlx.errors import DataError
from jvlm_mlx.training.examples import read_conversation, read_lines, read_sources

IMAGES, HELD_OUT, TEXTS, PAGES_OF_A_KIND = 32, 8, 7, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "new" / "data"
    write_data(folder, IMAGES, 3, HELD_OUT)
    return folder


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def conversations(path):
    return [read_conversation(line, path.parent) for _, line in read_lines(path)]


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_every_row_is_in_the_file_of_its_task(folder):
    rows = {name: rows_of(folder / f"{name}.jsonl") for name in SOURCES}
    assert sum(map(len, rows.values())) == IMAGES
    for name, tasks in SOURCES.items():
        assert {row["task"] for row in rows[name]} == set(tasks)
    assert {task for tasks in SOURCES.values() for task in tasks} == {*TASKS} - {"text_only"}
    assert len(rows_of(folder / "captions.jsonl")) == IMAGES
    assert len(rows_of(folder / "text.jsonl")) == TEXTS
    for kind in PAGES:
        assert len(rows_of(folder / f"{kind}.jsonl")) == PAGES_OF_A_KIND
    assert len(rows_of(folder / "valid.jsonl")) == HELD_OUT


def test_every_row_can_be_trained_on(folder):
    named = set()
    for path in folder.glob("*.jsonl"):
        for conversation in conversations(path):
            assert len(conversation.images) == (path.stem != "text")
            named.update(conversation.images)
    assert named == {str(path) for path in (folder / "images").iterdir()}
    assert len(named) == len(PAGES) * PAGES_OF_A_KIND + IMAGES + HELD_OUT


def test_rows_and_images_are_those_of_the_examples(folder):
    series = list(examples(3, IMAGES, training_data._IMAGE_TASKS))
    stored = {
        row["messages"][0]["content"][0]["path"]: row
        for name in SOURCES
        for row in rows_of(folder / f"{name}.jsonl")
    }
    captions = rows_of(folder / "captions.jsonl")
    for place, example in enumerate(series):
        path = f"images/{place + 1:06d}.png"
        with Image.open(folder / path) as image:
            assert image.tobytes() == example.image.tobytes()
        assert stored[path] == question_row(example, path)
        assert captions[place] == caption_row(example, path)


def test_a_row_has_all_turns_and_one_image():
    (example,) = examples(0, 1, ("form",), ("de",))
    row = question_row(example, "a.png")
    assert (row["task"], row["language"]) == ("form", "de")
    first = example.turns[0]
    assert row["messages"][:2] == [
        {
            "role": "user",
            "content": [
                {"type": "image", "path": "a.png"},
                {"type": "text", "text": first.question},
            ],
        },
        {"role": "assistant", "content": first.answer},
    ]
    assert row["messages"][2:] == [
        message
        for turn in example.turns[1:]
        for message in (
            {"role": "user", "content": turn.question},
            {"role": "assistant", "content": turn.answer},
        )
    ]
    caption = caption_row(example, "a.png")["messages"]
    assert caption[0]["content"][1]["text"] == "Beschreibe das Bild."
    assert caption[1]["content"] == example.caption


def test_held_out_images_are_never_trained_on(folder):
    for path in (folder / "images").iterdir():
        with Image.open(path) as image:
            assert is_held_out(image) == path.name.startswith("valid-")


def test_mixtures_name_all_files(folder):
    pages, first, second = (
        read_sources(folder / f"{name}.json") for name in ("pages", "stage1", "stage2")
    )
    assert [one.name for one in pages] == list(PAGES)
    assert [(one.name, one.kind) for one in first] == [
        *((kind, "captions") for kind in PAGES),
        ("captions", "captions"),
        ("text", "text"),
    ]
    assert [(one.name, one.kind) for one in second] == [
        *((name, "instructions") for name in SOURCES),
        *((kind, "captions") for kind in PAGES),
        ("captions", "captions"),
        ("text", "text"),
    ]
    last = read_sources(folder / "questions.json")
    assert [one.name for one in last] == [
        *SOURCES,
        "print_page",
        "small_print_page",
        "text",
    ]
    # The weights are the shares of the rows, so that all are seen equally often.
    asked = second[: len(SOURCES)]
    rows = [len(rows_of(one.path)) for one in asked]
    weights = [one.weight for one in asked]
    assert [weight * IMAGES for weight in weights] == [sum(weights) * count for count in rows]


def test_few_images_name_no_missing_source(tmp_path):
    write_data(tmp_path / "few", 2, 0, 1)
    assert [one.name for one in read_sources(tmp_path / "few" / "stage2.json")] == [
        "scenes",
        "print",
        *PAGES,
        "captions",
        "text",
    ]


def test_a_seed_gives_the_same_bytes(folder, tmp_path):
    write_data(tmp_path / "again", IMAGES, 3, HELD_OUT)
    write_data(tmp_path / "other", IMAGES, 4, HELD_OUT)
    assert contents(tmp_path / "again") == contents(folder)
    assert contents(tmp_path / "other") != contents(folder)


@pytest.mark.parametrize("kind", ["folder", "file", "broken link"])
def test_what_exists_is_refused(tmp_path, kind):
    output = tmp_path / "data"
    if kind == "folder":
        output.mkdir()
    elif kind == "file":
        output.write_text("mine")
    else:
        output.symlink_to(tmp_path / "nowhere")
    before = contents(tmp_path)
    with pytest.raises(DataError, match="exists already"):
        write_data(output, 1, 0, 1)
    assert contents(tmp_path) == before
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_is_not_finished_is_not_there(tmp_path, monkeypatch, failure):
    def fail(*_):
        raise failure

    # The last thing that is written.
    monkeypatch.setattr(training_data, "_write_mixture", fail)
    expected = DataError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        write_data(tmp_path / "data", 1, 0, 1)
    assert list(tmp_path.iterdir()) == []


def run(*arguments):
    return run_command(
        "training_data",
        training_data.__doc__,
        training_data.add_arguments,
        training_data.run,
        [str(one) for one in arguments],
    )


def test_the_command_writes_and_then_refuses(tmp_path, capsys):
    output = tmp_path / "data"
    flags = ("--images", 3, "--seed", 1, "--held-out", 2)
    assert run(output, *flags) == 0
    assert len(list((output / "images").iterdir())) == 4 + 3 + 2
    assert capsys.readouterr() == ("", "")  # no progress: nobody is watching
    assert run(output, *flags) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1


def test_the_command_refuses_no_images(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path / "data", "--images", 0)
    assert "0 is not above 0" in capsys.readouterr().err
