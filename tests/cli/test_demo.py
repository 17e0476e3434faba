import argparse
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from jvlm_mlx.checkpoint import hub as locate
from jvlm_mlx.checkpoint.hub import locate_checkpoint
from jvlm_mlx.cli.main import main, run_subcommand
from jvlm_mlx.demo.tasks import TASKS, example_at, is_held_out
from jvlm_mlx.errors import CheckpointError
from jvlm_mlx.generate import add_arguments


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def demo(*arguments):
    return run_subcommand("demo", [str(one) for one in arguments])


def test_an_image_and_what_to_ask(here, capsys):
    assert demo() == 0
    assert [path.name for path in here.iterdir()] == ["demo.png"]
    with Image.open("demo.png") as image:
        assert image.size == (128, 128)  # two by two tiles
        assert is_held_out(image)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("demo.png shows: number ")
    assert sum(line.startswith("python -m jvlm_mlx.generate --model demo") for line in lines) > 2


@pytest.mark.parametrize("language", ["en", "fr"])
def test_the_commands_can_be_typed_as_they_are(capsys, language):
    assert demo("--language", language, "-o", "my own.png", "--task", "count", "--seed", 2) == 0
    lines = capsys.readouterr().out.splitlines()
    example = example_at(2, 0, ("count",), (language,), held_out=True)
    with Image.open("my own.png") as image:
        assert image.tobytes() == example.image.tobytes()
    assert lines[0] == f"my own.png shows: {example.caption}"
    answers = [line.removeprefix("# right answer: ") for line in lines if line.startswith("#")]
    assert answers == [turn.answer for turn in example.turns]
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    commands = [shlex.split(line) for line in lines if line.startswith("python")]
    for command, turn in zip(commands, example.turns, strict=True):
        assert command[:3] == ["python", "-m", "jvlm_mlx.generate"]
        read = parser.parse_args(command[3:])
        assert (read.model, read.image, read.prompt) == ("demo", ["my own.png"], [turn.question])


def test_a_file_is_never_replaced_unasked(here, capsys):
    (here / "demo.png").write_text("mine")
    assert demo() == 1
    assert re.fullmatch("error: demo.png exists already;.*\n", capsys.readouterr().err)
    assert (here / "demo.png").read_text() == "mine"
    assert demo("--force") == 0
    with Image.open("demo.png") as image:
        assert image.format == "PNG"


def test_the_same_command_may_be_repeated(here, capsys):
    assert demo() == 0
    said, before = capsys.readouterr().out, (here / "demo.png").read_bytes()
    assert demo() == 0
    assert (capsys.readouterr().out, (here / "demo.png").read_bytes()) == (said, before)
    assert demo("--seed", 5) == 1  # another image
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("output", "problem"),
    [("demo.jpg", "must end in .png"), ("nowhere/demo.png", "cannot be written")],
)
def test_what_cannot_be_written_is_one_line(here, capsys, output, problem):
    assert demo("-o", output) == 1
    said = capsys.readouterr().err
    assert problem in said
    assert said.count("\n") == 1
    assert list(here.iterdir()) == []


def test_an_image_that_fails_leaves_the_old_one(here, monkeypatch, capsys):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    assert demo() == 0
    before = (here / "demo.png").read_bytes()
    monkeypatch.setattr(Path, "write_bytes", fail)
    assert demo("--force", "--seed", 5) == 1
    assert "No space left" in capsys.readouterr().err
    assert (here / "demo.png").read_bytes() == before
    assert [path.name for path in here.iterdir()] == ["demo.png"]


def test_every_task_with_an_image_can_be_drawn(here):
    for task in TASKS:
        if task != "text_only":
            assert demo("--task", task, "-o", f"{task}.png") == 0
    with pytest.raises(SystemExit):
        demo("--task", "text_only")


def test_demo_is_a_verb(here):
    assert main(["demo", "--output", "a.png"]) == 0
    assert (here / "a.png").exists()


@pytest.fixture
def installed(tmp_path_factory, monkeypatch):
    """A stand-in for the checkpoint in the package."""
    folder = tmp_path_factory.mktemp("installed")
    (folder / "config.json").write_text("{}")
    monkeypatch.setattr(locate, "DEMO_FOLDER", folder)
    return folder


def test_demo_is_the_model_of_the_package(installed, here, caplog):
    assert locate_checkpoint("demo") == installed
    assert caplog.records == []
    (here / "demo").mkdir()
    assert locate_checkpoint("demo") == installed
    assert caplog.records == []
    (here / "demo" / "config.json").write_text("{}")
    assert locate_checkpoint("demo") == installed
    assert "the folder here is ./demo" in caplog.text


def test_a_folder_named_demo_needs_to_be_named_as_one(installed, here):
    (here / "demo").mkdir()
    for name in ("./demo", here / "demo", locate.Path("demo")):
        assert locate_checkpoint(name).resolve() == (here / "demo").resolve()


def test_demo_has_no_revision(installed):
    with pytest.raises(CheckpointError, match="no revision 'main'"):
        locate_checkpoint("demo", revision="main")


def test_an_installation_without_the_model_says_so(installed):
    (installed / "config.json").unlink()
    with pytest.raises(CheckpointError, match="lacks the model demo"):
        locate_checkpoint("demo")
