"""The window: its threads without a display, and all of it on a virtual one."""

import io
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image

import jvlm_mlx
from jvlm_mlx.cli.main import main
from jvlm_mlx.errors import CheckpointError
from jvlm_mlx.generation.caches import GenerationCaches
from jvlm_mlx.window import THUMBNAIL, Assistant

ROOT = Path(__file__).parents[2]


@pytest.fixture
def assistant(tiny):
    assistant = Assistant(lambda: tiny, {"max_tokens": 6, "stop_token_ids": ()}, GenerationCaches())
    ready(assistant)
    yield assistant
    assistant.close()


def ready(assistant):
    assistant.load(lambda _: None, pytest.fail)
    next_event(assistant)


def next_event(assistant):
    """Do what the window would do, and return what the function was called with."""
    function, argument = assistant.events.get(timeout=60)
    function(argument)
    return argument


class Heard(list):
    """A callback for each kind of event; the list has its name and argument."""

    def __getattr__(self, name):
        return lambda argument: self.append((name, argument))


def test_an_answer_arrives_as_events(assistant, tiny, golden_folder):
    image = golden_folder / "images" / "dot.png"
    heard = Heard()
    assistant.ask("What?", [image], heard.said, heard.done, heard.failed)
    while not heard or heard[-1][0] != "done":
        next_event(assistant)
    expected = jvlm_mlx.generate(*tiny, "What?", image, max_tokens=6, stop_token_ids=())
    assert len(heard) == 7
    assert "".join(text for name, text in heard if name == "said") == expected.text
    assert re.fullmatch(r"6 tokens, [\d.]+ tokens/s, ended by length", heard[-1][1])


def test_an_answer_is_stopped_within_a_token(assistant):
    assistant._options["max_tokens"] = 400
    heard = Heard()
    assistant.ask("What?", [], heard.said, heard.done, heard.failed)
    next_event(assistant)
    assistant.stop()
    while heard[-1][0] != "done":
        next_event(assistant)
    assert heard[-1][1].endswith("ended by cancelled")
    assert len(heard) < 400


def test_closing_ends_an_answer(tiny):
    assistant = Assistant(
        lambda: tiny, {"max_tokens": 400, "stop_token_ids": ()}, GenerationCaches()
    )
    ready(assistant)
    heard = Heard()
    assistant.ask("What?", [], heard.said, heard.done, heard.failed)
    next_event(assistant)
    assistant.close()
    assert assistant.events.qsize() < 395


def test_images_are_opened_and_shown_small(assistant, tmp_path):
    pages = [Image.new("RGB", (2000, 1000), color) for color in ("red", "blue")]
    pages[0].save(tmp_path / "report.pdf", save_all=True, append_images=pages[1:])
    heard = Heard()
    assistant.open(str(tmp_path / "report.pdf"), heard.shown, heard.failed)
    next_event(assistant)
    ((name, (found, png)),) = heard
    assert (name, len(found)) == ("shown", 2)
    with Image.open(io.BytesIO(png)) as thumbnail:
        assert thumbnail.width == THUMBNAIL[0]
    assistant.open(str(tmp_path / "none.png"), heard.shown, heard.failed)
    next_event(assistant)
    assert heard[-1][0] == "failed"
    assert "No such file" in heard[-1][1]


def test_a_closed_window_waits_for_no_model():
    """It may be on its way through the network."""
    begun, released = threading.Event(), threading.Event()

    def load():
        begun.set()
        assert released.wait(60)

    assistant = Assistant(load, {}, GenerationCaches())
    assistant.load(print, print)
    assert begun.wait(60)
    assistant.close()
    assert assistant.events.empty()  # so `close` came back while it was loading
    released.set()


def test_a_model_that_cannot_be_loaded_is_one_line():
    def load():
        raise CheckpointError("there is no such model")

    assistant = Assistant(load, {}, GenerationCaches())
    heard = Heard()
    assistant.load(heard.done, heard.failed)
    next_event(assistant)
    assert heard == [("failed", "there is no such model")]
    assistant.close()


def test_a_mistake_in_a_thread_does_not_hide_there():
    assistant = Assistant(lambda: 1 / 0, {}, GenerationCaches())
    heard = Heard()
    assistant.load(heard.done, heard.failed)
    with pytest.raises(ZeroDivisionError):
        next_event(assistant)
    assistant.close()


# --- with a display


def test_the_window_is_used_like_a_person_would(display, tiny, golden_folder):
    image = golden_folder / "images" / "dot.png"
    command = ["-m", "tests.helpers.window_driver", str(golden_folder / "tiny"), str(image)]
    finished = subprocess.run(
        [sys.executable, "-W", "error", *command],
        cwd=ROOT, env=display, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (finished.returncode, finished.stderr) == (0, "")
    seen = json.loads(finished.stdout)
    expected = jvlm_mlx.generate(*tiny, "What?", image, max_tokens=8, stop_token_ids=()).text
    assert seen["at first"] == {
        "status": "the model is loading", "button": "Ask", "enabled": False, "answer": "",
        "well": "Click to choose an image", "thumbnail": False,
    }  # fmt: skip
    assert (seen["loaded"]["status"], seen["loaded"]["enabled"]) == ("ready", True)
    assert not seen["opening"]["enabled"]
    assert "'/no/such.png' cannot be opened" in seen["missing"]["status"]
    assert not seen["missing"]["thumbnail"]
    opened = seen["opened"]
    assert (opened["well"], opened["thumbnail"], opened["enabled"]) == ("dot.png", True, True)
    assert opened["status"] == f"{image}: 1 page"
    assert (seen["asked"]["button"], seen["asked"]["answer"]) == ("Stop", "")
    assert (seen["answered"]["button"], seen["answered"]["answer"]) == ("Ask", expected)
    for how in ("key", "button"):
        stopped = seen[f"stopped by {how}"]
        assert stopped["status"].endswith("ended by cancelled")
        assert stopped["button"] == "Ask"
        assert stopped["answer"].startswith(expected[:1])
    assert seen["refused"]["status"].startswith("max_tokens is -1")
    assert seen["chosen"]["status"] == f"{image}: 1 page"
    assert (seen["pasted"]["well"], seen["last"]["button"]) == ("clipboard:", "Ask")


# --- without one


def test_without_a_display_there_is_one_line(monkeypatch, capsys):
    pytest.importorskip("tkinter")
    if sys.platform == "darwin":
        pytest.skip("a Mac has one")
    monkeypatch.delenv("DISPLAY", raising=False)
    assert main(["window", "--model", "demo"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: no window can be opened: ")
    assert said.count("\n") == 1


def test_without_tkinter_there_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tkinter", None)
    assert main(["window", "--model", "demo"]) == 1
    assert re.fullmatch(
        r"error: this Python has no tkinter; with Homebrew, brew install python-tk@3\.\d+\n",
        capsys.readouterr().err,
    )
