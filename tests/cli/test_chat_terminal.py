"""The terminal's conversation where something goes wrong, or an answer is empty."""

import dataclasses
import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import mlx.core as mx
import pytest

import jvlm_mlx
from jvlm_mlx import ChatSession
from jvlm_mlx.cli.chat_commands import COMMANDS, Conversation
from jvlm_mlx.cli.chat_lines import complete, read_question, take_images
from jvlm_mlx.cli.chat_terminal import run_console
from jvlm_mlx.cli.main import main
from jvlm_mlx.errors import RequestError, SessionError
from jvlm_mlx.generation.answer import Answer
from tests.helpers.conversations import OPTIONS, fresh, user

LONG = "x" * 16_000


@pytest.fixture
def image(golden_folder):
    return golden_folder / "images" / "dot.png"


def first_answer(tiny, image, **options):
    session = ChatSession(*tiny, max_tokens=4, stop_token_ids=(), **options)
    return session, list(session.ask("What?", image))


# --- empty answers


def test_an_empty_answer_belongs_to_the_conversation(tiny, image):
    _, responses = first_answer(tiny, image)
    session, empty = first_answer(
        tiny, image, stop="".join(response.text for response in responses)[:1]
    )
    assert "".join(response.text for response in empty) == ""
    assert empty[-1].finish_reason == "stop"
    question, answer = session.history
    assert answer == {"role": "assistant", "content": ""}
    assert len(session.images) == 1
    following = "".join(response.text for response in session.ask("And?", stop=()))
    messages = [
        {"role": "user", "content": [{"type": "image"}, question["content"][1]]},
        answer,
        {"role": "user", "content": "And?"},
    ]
    expected = jvlm_mlx.generate(*tiny, messages, [image], max_tokens=4, stop_token_ids=())
    assert following == expected.text


def talk(conversation, monkeypatch, *lines):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode())))
    run_console(conversation, lambda *_: None, lambda: None)


def test_images_wait_until_their_question_is_in_the_conversation(tiny, image, monkeypatch, capsys):
    _, responses = first_answer(tiny, image)
    character = "".join(response.text for response in responses)[:1]
    session = ChatSession(*tiny, max_tokens=4, stop_token_ids=(), stop=character)
    conversation = Conversation(*tiny, session, {})
    talk(conversation, monkeypatch, f"/image {image}", "What?", "/images")
    assert conversation.pending == []
    assert len(session.history) == 2
    out, err = capsys.readouterr()
    assert out == "\n"
    assert err.endswith("dot.png': 2 tiles, 64 tokens\n")


def test_images_of_an_answer_that_fails_stay_pending(tiny, image, monkeypatch, capsys):
    responses = Answer.responses

    def fail(answer):
        yield dataclasses.replace(next(responses(answer)), text="")
        raise RequestError("out of luck")

    monkeypatch.setattr(Answer, "responses", fail)
    conversation = Conversation(*tiny, ChatSession(*tiny, max_tokens=4), {})
    talk(conversation, monkeypatch, f"/image {image}", "What?")
    assert "error: out of luck" in capsys.readouterr().err
    assert (len(conversation.pending), conversation.session.history) == (1, [])


# --- names that cannot be looked up


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/save ~nosuch/x", "~nosuch/x"),
        ("/load ~nosuch/x", "~nosuch/x"),
        ("/image ~nosuch.png", "'~nosuch.png'"),
        (f"/save {LONG}", "File name too long"),
        (f"/load {LONG}", "File name too long"),
        (f"/image {LONG}", "File name too long"),
        (f"/image data:image/png;base64,{LONG}", "no image"),
        (f"/image 'data:image/png;base64,{LONG}", "No closing quotation"),
    ],
)
def test_names_that_cannot_be_looked_up_are_one_line(tiny, line, message, monkeypatch, capsys):
    conversation = Conversation(*tiny, ChatSession(*tiny), {})
    talk(conversation, monkeypatch, line)
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert len(err) < 300


def test_many_images_are_longer_than_a_name_may_be(tiny, image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dot.png").write_bytes(image.read_bytes())
    conversation = Conversation(*tiny, ChatSession(*tiny), {})
    conversation.react("/image" + " dot.png" * 40)
    assert len(conversation.pending) == 40


# --- files


def chat(monkeypatch, capsys, lines, *arguments):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode())))
    code = main(["chat", "--model", "demo", "--max-tokens", "1", *arguments])
    return code, *capsys.readouterr()


def test_history_that_cannot_be_kept_is_a_warning(monkeypatch, capsys, tmp_path):
    pytest.importorskip("readline")
    file = tmp_path / "no folder" / "history"
    code, _, err = chat(monkeypatch, capsys, ["/images"], "--history", str(file))
    assert code == 0
    assert err.startswith("no images\nwarning: ")
    assert str(file) in err
    assert err.count("\n") == 2
    code, _, err = chat(monkeypatch, capsys, ["/images"], "--history", str(tmp_path))
    assert code == 0
    assert err.startswith("warning: ")
    assert str(tmp_path) in err
    assert err.endswith("\nno images\n")
    assert err.count("\n") == 2


def test_an_interrupted_save_leaves_nothing(tiny, tmp_path, monkeypatch):
    save = mx.save_safetensors

    def interrupted(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(mx, "save_safetensors", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ChatSession(*tiny).save(tmp_path / "talk")
    assert list(tmp_path.iterdir()) == []


def test_only_files_are_saved_over(tiny, tmp_path):
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    for path in (pipe, folder):
        with pytest.raises(SessionError, match=rf"{path.name} is no regular file"):
            ChatSession(*tiny).save(path)
    assert pipe.is_fifo()
    assert sorted(tmp_path.iterdir()) == [folder, pipe]


# --- questions of several lines and dropped files


@pytest.mark.parametrize(
    ("lines", "question"),
    [
        (["Hello"], "Hello"),
        (["  Hello  "], "Hello"),
        (["One \\", "two"], "One \ntwo"),
        (['"""', "One \\", "", "two", '"""'], "One \\\n\ntwo"),
        (['"""One', 'two"""'], "One\ntwo"),
        (["caf\udce9"], "caf?"),
    ],
)
def test_a_question_may_have_several_lines(lines, question):
    following = iter(lines)
    continued = []

    def read_line(continues):
        continued.append(continues)
        return next(following)

    assert read_question(read_line) == question
    assert continued == [False] + [True] * (len(lines) - 1)


# --- the program itself


def read_from(lines):
    following = iter(lines)

    def read_line(_):
        try:
            return next(following)
        except StopIteration:
            raise EOFError from None

    return read_question(read_line)


def test_a_question_that_never_ends_is_named():
    with pytest.raises(RequestError, match='after """ has no end, so it was not asked'):
        read_from(['"""One', "two"])
    assert read_from(["One \\"]) == "One"


@pytest.fixture
def dropped(tmp_path, image):
    """A folder of images whose names have spaces and quotes, and of a text."""
    for name in ("my cat.png", "it's.PNG", "b.png"):
        (tmp_path / name).write_bytes(image.read_bytes())
    (tmp_path / "notes.txt").write_text("Hi")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "images", "question"),
    [
        (r"{}/my\ cat.png ", ["my cat.png"], ""),
        ("{}/my cat.png", ["my cat.png"], ""),
        ("'{}/my cat.png' What's this?", ["my cat.png"], "What's this?"),
        (r"What's this? {}/it\'s.PNG", ["it's.PNG"], "What's this?"),
        (r"{}/b.png {}/my\ cat.png  Compare", ["b.png", "my cat.png"], "Compare"),
        ('Compare {}/b.png "{}/my cat.png"', ["b.png", "my cat.png"], "Compare"),
        ("file://{}/my%20cat.png", ["my cat.png"], ""),
        ("{}/notes.txt says what?", [], "{}/notes.txt says what?"),
        ("{}/none.png is missing", [], "{}/none.png is missing"),
        ("Is {}/b.png an image?", [], "Is {}/b.png an image?"),
        ("b.png", [], "b.png"),
    ],
)
def test_dropped_files_are_images(dropped, line, images, question):
    found = take_images(line.replace("{}", str(dropped)))
    assert found == (
        [str(dropped / name) for name in images],
        question.replace("{}", str(dropped)),
    )


@pytest.mark.parametrize(
    ("line", "candidates"),
    [
        ("/im", ["/image ", "/images "]),
        ("/sa", ["/save "]),
        ("/image {}/m", [r"{}/my\ cat.png "]),
        (r"/image {}/my\ ", [r"{}/my\ cat.png "]),
        ("/load {}/n", ["{}/notes.txt "]),
        ("{}/b", ["{}/b.png "]),
        ("{}", ["{}/"]),
        ("What is b", []),
        ("/image /no/such/folder/", []),
    ],
)
def test_tab_completes_commands_and_paths(dropped, line, candidates):
    found = complete(line.replace("{}", str(dropped)), COMMANDS)
    assert found == [candidate.replace("{}", str(dropped)) for candidate in candidates]


def test_dropped_files_go_with_their_question(tiny, dropped, monkeypatch, capsys):
    conversation = Conversation(*tiny, ChatSession(*tiny, max_tokens=4), {})
    talk(conversation, monkeypatch, f"{dropped}/b.png", f"{dropped}/my\\ cat.png What?", "/images")
    assert [image.name for image in conversation.session.images] == [
        f"{str(dropped / name)!r}" for name in ("b.png", "my cat.png")
    ]
    assert len(conversation.session.history) == 2


# --- commands


@pytest.mark.parametrize("line", ["/exit", "/quit", "exit", "quit", "Quit"])
def test_lines_that_leave(tiny, line, monkeypatch, capsys):
    conversation = Conversation(*tiny, ChatSession(*tiny), {})
    talk(conversation, monkeypatch, line, "never asked")
    assert capsys.readouterr().out == ""


def test_pending_images_can_be_dropped(tiny, dropped, monkeypatch, capsys):
    session = ChatSession(*tiny, max_tokens=4, stop_token_ids=())
    conversation = Conversation(*tiny, session, {})
    image = f"/image {dropped}/b.png"
    talk(conversation, monkeypatch, image, "What?", image, image, f"/image '{dropped}/my cat.png'")
    capsys.readouterr()
    for line, said in (
        ("/drop 1", "error: /drop: 1 is no image that waits"),
        ("/drop x", "error: /drop: x is no image"),
        ("/drop 2", "dropped '"),
        ("/drop", "my cat.png'"),
    ):
        talk(conversation, monkeypatch, line)
        assert said in capsys.readouterr().err
    assert ["b.png" in image.name for image in conversation.pending] == [True]
    conversation.pending.clear()
    talk(conversation, monkeypatch, "/drop")
    assert "error: /drop: no image waits" in capsys.readouterr().err


def test_retry_and_undo(tiny, image, monkeypatch, capsys):
    conversation = Conversation(*tiny, ChatSession(*tiny, **OPTIONS), {})
    talk(conversation, monkeypatch, "/retry", "/undo")
    assert capsys.readouterr().err.count("error: the conversation has no question yet") == 2
    talk(conversation, monkeypatch, f"/image {image}", "What?", "/retry", "/undo", "/images")
    out, err = capsys.readouterr()
    assert out == 2 * (fresh(tiny, [user("What?", 1)], [image]).text + "\n")
    assert "removed; 1 image for the next question" in err
    assert conversation.session.history == []
    assert len(conversation.pending) == 1


def test_a_retry_that_fails_keeps_the_old_answer(tiny, monkeypatch):
    session = ChatSession(*tiny, **OPTIONS)
    list(session.ask("Hello"))
    before = session.history
    cancel = threading.Event()
    cancel.set()
    assert [one.finish_reason for one in session.retry(cancel=cancel)] == ["cancelled"]
    with pytest.raises(RequestError, match="temperature"):
        session.retry(temperature=-1)
    assert session.history == before


def test_control_characters_are_shown_not_obeyed(tiny, monkeypatch, capsys, image, tmp_path):
    session = ChatSession(*tiny, max_tokens=2)
    list(session.ask("What?", image))
    name = "\x1b]0;title\x07\x9b2J\u202e.png"
    session._messages[0]["content"][0]["image"] = dataclasses.replace(session.images[0], name=name)
    session.save(tmp_path / "talk")
    conversation = Conversation(*tiny, ChatSession.load(tmp_path / "talk", *tiny), {})
    talk(conversation, monkeypatch, "/images", "/load \x1b[2J")
    err = capsys.readouterr().err
    assert "1  \\x1b]0;title\\x07\\x9b2J\\u202e.png: 2 tiles" in err
    assert "error: \\x1b[2J does not exist" in err


def chat_command(golden_folder, *arguments):
    return [
        sys.executable, "-m", "jvlm_mlx.chat", "--model", str(golden_folder / "tiny"),
        "--max-tokens", "8", *arguments,
    ]  # fmt: skip


def test_without_a_terminal(tiny, golden_folder, image, tmp_path):
    file = tmp_path / "my talk"
    lines = [
        f"/image {image}", "What?", "/images", "/nonsense", "/image /no/such.png",
        "/etc/passwd is a file", f"/save {file}", "/reset", "/images", f"/load {file}", "/stats",
        "/help", "/exit", "never asked",
    ]  # fmt: skip
    done = subprocess.run(
        chat_command(golden_folder), input="\n".join(lines), capture_output=True, text=True,
        cwd=Path(__file__).parents[2], timeout=120,
    )  # fmt: skip
    assert done.returncode == 0
    stop = {"stop_token_ids": None}
    first = fresh(tiny, "What?", [image], **stop).text
    messages = [
        user("What?", 1),
        {"role": "assistant", "content": first},
        user("/etc/passwd is a file"),
    ]
    second = fresh(tiny, messages, [image], **stop).text
    assert done.stdout == f"{first}\n{second}\n"
    for expected in (
        r"dot\.png': 2 tiles, 64 tokens\n1  .*dot\.png': 2 tiles, 64 tokens\n",
        "error: there is no command /nonsense; /help lists them",
        r"error: '/no/such\.png' cannot be opened",
        f"saved to {file}\na new conversation\nno images\n",
        "a conversation of 4 messages and 1 image\n",
        r"answer: 8 tokens.*\n(.*\n)*cached features: 0 in .*\ncached prefixes: 1",
        r"/image IMAGE\.\.\.  show images",
    ):
        assert re.search(expected, done.stderr), (expected, done.stderr)


TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, sys.argv[1:])
"""


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, command):
        self.file, program_side = pty.openpty()
        self.seen = ""
        self.process = subprocess.Popen(
            # The terminal must be the program's own: else Ctrl-C would not reach it.
            [sys.executable, "-c", TAKE_TERMINAL, *command],
            stdin=program_side,
            stdout=program_side,
            stderr=program_side,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "TERM": "dumb"},
            start_new_session=True,
        )
        os.close(program_side)

    def type(self, text):
        os.write(self.file, text.encode())

    def wait_for(self, pattern, seconds=120):
        """Read until a pattern appears in what has not been matched yet; return the match."""
        deadline = time.monotonic() + seconds
        while (found := re.search(pattern, self.seen)) is None:
            ready, _, _ = select.select([self.file], [], [], deadline - time.monotonic())
            assert ready, f"{pattern!r} did not appear in {self.seen!r}"
            try:
                self.seen += os.read(self.file, 4096).decode("utf-8", "replace")
            except OSError:
                raise AssertionError(f"left before {pattern!r}: {self.seen!r}") from None
        self.seen = self.seen[found.end() :]
        return found

    def exit_code(self):
        return self.process.wait(timeout=120)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.file)


def test_on_a_terminal(golden_folder, image, tmp_path):
    history = tmp_path / "history"
    command = chat_command(
        golden_folder, "--max-tokens", "30000", "--history", str(history),
        "--image", str(image),
    )  # fmt: skip
    with Terminal(command) as terminal:
        terminal.wait_for(r"dot\.png': 2 tiles")
        terminal.wait_for("/help lists commands")
        terminal.wait_for("> ")
        terminal.type("Tell me \\\n")
        terminal.wait_for(r"\. ")
        terminal.type("everything\n")
        # The answer is under way when something follows the question's echo.
        terminal.wait_for(r"everything\r\n(?s:.{20})")
        terminal.type("\x03")
        terminal.wait_for(r"\(stopped\)\r\n")
        terminal.wait_for("> ")
        terminal.type("/stats\n")
        terminal.wait_for("ended by cancelled")
        terminal.wait_for("> ")
        terminal.type("half a line\x03")
        terminal.wait_for("Ctrl-D leaves")
        terminal.wait_for("> ")
        terminal.type("/images\n")
        terminal.wait_for(r"1  .*dot\.png': 2 tiles, 64 tokens\r\n")
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.exit_code() == 0
    if history.exists():  # where Python has readline
        assert "/stats" in history.read_text()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_ctrl_c_at_the_moment_at_which_a_key_is_shown(golden_folder):
    """On one processor: whoever sees the key on the screen runs before the program goes on."""
    with Terminal(chat_command(golden_folder, "--quiet")) as terminal:
        terminal.wait_for("> ")
        allowed = os.sched_getaffinity(0)
        for process in (0, terminal.process.pid):
            os.sched_setaffinity(process, {min(allowed)})
        try:
            for _ in range(20):
                terminal.type("half a line")
                terminal.wait_for("half a line")
                terminal.type("\x03")
                terminal.wait_for("Ctrl-D leaves")
                terminal.wait_for("> ")
        finally:
            os.sched_setaffinity(0, allowed)


def test_ctrl_c_handler_is_put_back(tiny, monkeypatch, capsys):
    before = signal.getsignal(signal.SIGINT)
    lines = iter(["Hello"])

    def read():
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115, PTH123
    conversation = Conversation(*tiny, ChatSession(*tiny, **OPTIONS), {})
    run_console(conversation, lambda *_: None, lambda: None)
    sys.stdin.close()
    assert signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr().out == fresh(tiny, [user("Hello")], None).text + "\n"
