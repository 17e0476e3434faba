"""Conversations: sessions, their files, and the terminal."""

import json
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
from jvlm_mlx import ChatSession, GenerationCaches
from jvlm_mlx.cli.chat_lines import read_question
from jvlm_mlx.errors import ImageError, PromptError, RequestError, SessionError

OPTIONS = {"max_tokens": 8, "stop_token_ids": ()}


@pytest.fixture
def images(golden_folder):
    return {name: golden_folder / "images" / f"{name}.png" for name in ("shapes", "dot", "square")}


def say(session, text, images=None, **options):
    pieces = list(session.ask(text, images, **options))
    return "".join(piece.text for piece in pieces), pieces[-1]


def fresh(tiny, messages, images, **options):
    return jvlm_mlx.generate(*tiny, messages, images, **{**OPTIONS, **options})


def user(text, images=0):
    content = [{"type": "image"}] * images + [{"type": "text", "text": text}]
    return {"role": "user", "content": content}


# --- sessions


def test_every_turn_is_what_a_fresh_run_says(tiny, images):
    session = ChatSession(*tiny, "Be brief.", **OPTIONS)
    messages, shown = [{"role": "system", "content": "Be brief."}], []
    turns = (
        ("Hello", []),
        ("What is this?", [images["dot"]]),
        ("And these?", [images["square"], images["dot"]]),
        ("Thanks", []),
    )
    known = 0
    for text, new in turns:
        answer, piece = say(session, text, new)
        messages.append(user(text, len(new)))
        shown += new
        expected = fresh(tiny, messages, shown)
        assert (answer, piece.prompt_tokens) == (expected.text, expected.prompt_tokens)
        assert piece.cached_tokens >= known
        # The next turn reads nothing of this prompt again.
        known = piece.prompt_tokens
        messages.append({"role": "assistant", "content": answer})
    assert [message["role"] for message in session.history] == ["user", "assistant"] * 4
    assert [image.layout.num_tiles for image in session.images] == [2, 2, 2]
    # An image that was there before did not go through the tower again.
    assert session.caches.stats()["features"].hits == 1


def test_images_go_where_the_parts_say(tiny, images):
    session = ChatSession(*tiny, **OPTIONS)
    parts = [
        {"type": "text", "text": "Left"},
        {"type": "image", "image": str(images["dot"])},
        {"type": "text", "text": "right"},
        {"type": "image"},
    ]
    answer, _ = say(session, parts, images["square"])
    expected = fresh(tiny, [{"role": "user", "content": parts}], [images["square"]])
    assert answer == expected.text
    with pytest.raises(PromptError, match=r"1 image parts .* but 0 images"):
        session.ask(parts)


def test_limits_of_one_question_stay_with_its_images(tiny, images):
    session = ChatSession(*tiny, **OPTIONS)
    say(session, "What?", images["shapes"], max_crops=2)
    _, piece = say(session, "And?", images["shapes"])
    few, many = piece.tiles
    assert few <= 3 < many
    _, piece = say(session, "And?", max_crops=1)
    assert piece.tiles == (few, many)


def test_answers_left_early_keep_what_was_said(tiny, images):
    session = ChatSession(*tiny, **OPTIONS)
    whole, _ = say(ChatSession(*tiny, **OPTIONS), "What?", images["dot"])
    answer = session.ask("What?", images["dot"])
    said = next(answer).text + next(answer).text + next(answer).text
    answer.close()
    assert whole.startswith(said)
    assert session.history[1] == {"role": "assistant", "content": said}
    next_answer, _ = say(session, "Go on")
    messages = [user("What?", 1), session.history[1], user("Go on")]
    assert next_answer == fresh(tiny, messages, [images["dot"]]).text


@pytest.mark.parametrize("stage", ["tiles", "prefill", "answer"])
def test_cancelling(tiny, images, stage):
    session = ChatSession(*tiny, **OPTIONS)
    cancel = threading.Event()

    def progress(event):
        if event.stage == stage:
            cancel.set()

    pieces = []
    for piece in session.ask("What?", images["dot"], cancel=cancel, progress=progress):
        pieces.append(piece)
        if stage == "answer" and len(pieces) == 2:
            cancel.set()
    assert pieces[-1].finish_reason == "cancelled"
    assert len(session.history) == (2 if stage == "answer" else 0)
    answer, _ = say(session, "Hello") if stage != "answer" else (None, None)
    if answer is not None:
        assert answer == fresh(tiny, [user("Hello")], None).text


def test_failures_leave_the_history_as_it_was(tiny, images):
    session = ChatSession(*tiny, **OPTIONS)
    say(session, "Hello")
    before = session.history
    with pytest.raises(ImageError, match="no such"):
        session.ask("What?", "/no such image.png")
    with pytest.raises(RequestError, match="temperature"):
        session.ask("What?", temperature=-1)
    with pytest.raises(RequestError, match="max_tokens"):
        ChatSession(*tiny, max_tokens=0)

    def progress(*_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(session.ask("What?", images["dot"], progress=progress))
    assert session.history == before
    say(session, "Still there?")
    assert len(session.history) == 4


def test_one_answer_at_a_time(tiny, tmp_path):
    session = ChatSession(*tiny, **OPTIONS)
    early = session.ask("First")
    answer = session.ask("Second")
    next(answer)
    for action in (lambda: session.ask("x"), session.reset, lambda: session.save(tmp_path / "x")):
        with pytest.raises(RequestError, match="still being made"):
            action()
    answer.close()
    with pytest.raises(RequestError, match="has gone on"):
        next(early)
    session.reset()
    assert session.history == []
    assert say(session, "Second")[0] == fresh(tiny, [user("Second")], None).text


def test_history_is_a_copy(tiny):
    session = ChatSession(*tiny, **OPTIONS)
    say(session, "Hello")
    session.history[0]["content"].clear()
    session.history.clear()
    assert len(session.history[0]["content"]) == 1


def test_sessions_share_caches_and_nothing_else(tiny, images):
    caches = GenerationCaches()
    answers = []
    for _ in range(2):
        session = ChatSession(*tiny, caches=caches, **OPTIONS)
        answers.append(say(session, "What?", images["dot"]))
    assert answers[0][0] == answers[1][0]
    assert answers[1][1].cached_tokens == answers[1][1].prompt_tokens - 1


def test_sessions_without_room_for_caches(tiny, images):
    session = ChatSession(*tiny, caches=GenerationCaches(0), **OPTIONS)
    messages = []
    for text, new in (("What?", [images["dot"]]), ("And?", [])):
        answer, piece = say(session, text, new)
        messages.append(user(text, len(new)))
        assert answer == fresh(tiny, messages, [images["dot"]]).text
        assert piece.cached_tokens == 0
        messages.append({"role": "assistant", "content": answer})


# --- files


@pytest.fixture
def saved(tiny, images, tmp_path):
    session = ChatSession(*tiny, "Be brief.", **OPTIONS)
    say(session, "What?", images["dot"])
    say(session, "And?", images["square"])
    session.save(tmp_path / "talk.session")
    return session, tmp_path / "talk.session"


def test_a_saved_session_goes_on(tiny, saved):
    session, path = saved
    loaded = ChatSession.load(path, *tiny)
    assert [m["role"] for m in loaded.history] == [m["role"] for m in session.history]
    assert loaded.system == "Be brief."
    answer, piece = say(session, "Go on")
    again, loaded_piece = say(loaded, "Go on")
    assert again == answer
    assert loaded_piece.cached_tokens == piece.cached_tokens > piece.image_tokens
    assert loaded.caches.stats()["features"].misses == 0
    with pytest.raises(RequestError, match="max_tokens"):
        ChatSession.load(path, *tiny, max_tokens=0)


def test_a_session_is_saved_over_itself(tiny, saved):
    _, path = saved
    loaded = ChatSession.load(path, *tiny)
    say(loaded, "Go on")
    loaded.save(path)
    assert len(ChatSession.load(path, *tiny).history) == 6
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_session_loaded_by_another_thread(tiny, saved):
    session, path = saved
    loaded = []

    def load():
        try:
            loaded.append(ChatSession.load(path, *tiny))
        finally:
            mx.clear_streams()

    thread = threading.Thread(target=load)
    thread.start()
    thread.join()
    assert say(loaded[0], "Go on")[0] == say(session, "Go on")[0]


def test_states_that_left_the_cache_are_not_saved_and_not_missed(tiny, saved):
    session, path = saved
    session.caches.clear()
    size = path.stat().st_size
    session.save(path)
    assert path.stat().st_size < size
    loaded = ChatSession.load(path, *tiny)
    answer, piece = say(loaded, "Go on")
    assert piece.cached_tokens == 0
    assert answer == say(session, "Go on")[0]


def test_empty_sessions_are_saved_too(tiny, tmp_path):
    ChatSession(*tiny).save(tmp_path / "empty")
    assert ChatSession.load(tmp_path / "empty", *tiny).history == []


def test_damaged_files_are_refused_by_name(tiny, saved, tmp_path):
    _, path = saved
    whole = path.read_bytes()
    with pytest.raises(SessionError, match=r"nowhere does not exist"):
        ChatSession.load(tmp_path / "nowhere", *tiny)
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(SessionError, match=r"talk\.session is truncated") as caught:
            ChatSession.load(path, *tiny)
        assert "\n" not in str(caught.value)
    mx.save_safetensors(str(tmp_path / "other.safetensors"), {"a": mx.zeros(1)})
    with pytest.raises(SessionError, match="no saved conversation"):
        ChatSession.load(tmp_path / "other.safetensors", *tiny)


def rewrite(path, change):
    from safetensors import safe_open

    with safe_open(path, "numpy") as opened:
        content = json.loads(opened.metadata()["session"])
    tensors = mx.load(str(path), format="safetensors")
    change(content, tensors)
    target = path.with_name("changed.safetensors")
    mx.save_safetensors(str(target), tensors, {"session": json.dumps(content)})
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content, _: content.update(version=2), "version 2.* update"),
        (lambda content, _: content.update(format="x"), "no saved conversation"),
        (lambda content, _: content.pop("messages"), "damaged"),
        (lambda content, _: content["images"][0]["settings"].update(new=1), "damaged"),
        (lambda _, tensors: tensors.pop("layers.1.keys"), "damaged"),
        (lambda _, tensors: tensors.pop("images.1"), "damaged"),
    ],
)
def test_files_that_do_not_fit_are_refused(tiny, saved, change, message):
    with pytest.raises(SessionError, match=rf"changed\.safetensors.* {message}"):
        ChatSession.load(rewrite(saved[1], change), *tiny)


def test_files_of_another_model_are_refused(tiny, saved, golden_folder):
    other, processor = jvlm_mlx.load(golden_folder / "tiny")
    layer = other.decoder.layers[0].mlp.down
    layer.weight = layer.weight * 1.5
    with pytest.raises(SessionError, match=r"talk\.session.* another model \(the same size, but"):
        ChatSession.load(saved[1], other, processor)
    half = jvlm_mlx.load(golden_folder / "tiny", dtype="float16")
    with pytest.raises(SessionError, match=r"layers of 64 in float32; in use: .* in float16"):
        ChatSession.load(saved[1], *half)


def test_a_file_that_cannot_be_written_changes_nothing(saved, tmp_path, monkeypatch):
    session, path = saved
    whole = path.read_bytes()
    with pytest.raises(SessionError, match="cannot be written"):
        session.save(tmp_path / "no folder" / "x")

    def fail(*_):
        raise RuntimeError("no space left")

    monkeypatch.setattr(mx, "save_safetensors", fail)
    with pytest.raises(SessionError, match="no space left"):
        session.save(path)
    assert path.read_bytes() == whole
    assert [file.name for file in path.parent.iterdir()] == [path.name]


# --- the terminal


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
def test_questions_of_several_lines(lines, question):
    following = iter(lines)
    continued = []

    def read_line(goes_on):
        continued.append(goes_on)
        return next(following)

    assert read_question(read_line) == question
    assert continued == [False] + [True] * (len(lines) - 1)


def chat_command(golden_folder, *arguments):
    return [
        sys.executable, "-m", "jvlm_mlx.chat", "--model", str(golden_folder / "tiny"),
        "--max-tokens", "8", *arguments,
    ]  # fmt: skip


def test_without_a_terminal(tiny, golden_folder, images, tmp_path):
    file = tmp_path / "my talk"
    lines = [
        f"/image {images['dot']}", "What?", "/images", "/nonsense", "/image /no/such.png",
        "/etc/passwd is a file", f"/save {file}", "/reset", "/images", f"/load {file}", "/stats",
        "/help", "/exit", "never asked",
    ]  # fmt: skip
    done = subprocess.run(
        chat_command(golden_folder), input="\n".join(lines), capture_output=True, text=True,
        cwd=Path(__file__).parents[2], timeout=120,
    )  # fmt: skip
    assert done.returncode == 0
    stop = {"stop_token_ids": None}
    first = fresh(tiny, "What?", [images["dot"]], **stop).text
    messages = [
        user("What?", 1),
        {"role": "assistant", "content": first},
        user("/etc/passwd is a file"),
    ]
    second = fresh(tiny, messages, [images["dot"]], **stop).text
    assert done.stdout == f"{first}\n{second}\n"
    for expected in (
        r"dot\.png': 2 tiles, 64 tokens\n1  .*dot\.png': 2 tiles, 64 tokens\n",
        "error: there is no command /nonsense; /help lists them",
        r"error: '/no/such\.png' cannot be opened",
        f"saved to {file}\na new conversation\nno images\n",
        "a conversation of 4 messages and 1 image\n",
        r"answer: 8 tokens.*\n(.*\n)*features remembered: 1 in .*\nprefixes remembered",
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


def test_on_a_terminal(golden_folder, images, tmp_path):
    history = tmp_path / "history"
    command = chat_command(
        golden_folder, "--max-tokens", "30000", "--history", str(history),
        "--image", str(images["dot"]),
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
        terminal.type("half a line")
        # Ctrl-C before the line is being read may be noticed only at the next key.
        terminal.wait_for("half a line")
        terminal.type("\x03")
        terminal.wait_for("Ctrl-D leaves")
        terminal.wait_for("> ")
        terminal.type("/images\n")
        terminal.wait_for(r"1  .*dot\.png': 2 tiles, 64 tokens\r\n")
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.exit_code() == 0
    if history.exists():  # where Python has readline
        assert "/stats" in history.read_text()


def test_ctrl_c_handler_is_put_back(tiny, monkeypatch, capsys):
    from jvlm_mlx.cli.chat_commands import Conversation
    from jvlm_mlx.cli.chat_terminal import run_console

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
