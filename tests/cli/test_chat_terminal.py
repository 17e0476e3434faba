"""The terminal's conversation where something goes wrong, or an answer is empty."""

import dataclasses
import io
import os
import sys

import mlx.core as mx
import pytest

import jvlm_mlx
from jvlm_mlx import ChatSession
from jvlm_mlx.cli.chat_commands import Conversation
from jvlm_mlx.cli.chat_terminal import run_console
from jvlm_mlx.cli.main import main
from jvlm_mlx.errors import RequestError, SessionError
from jvlm_mlx.generation.answer import Answer

LONG = "x" * 16_000


@pytest.fixture
def image(golden_folder):
    return golden_folder / "images" / "dot.png"


def first_answer(tiny, image, **options):
    session = ChatSession(*tiny, max_tokens=4, stop_token_ids=(), **options)
    return session, list(session.ask("What?", image))


# --- answers without a word


def test_an_empty_answer_is_part_of_the_conversation(tiny, image):
    _, pieces = first_answer(tiny, image)
    session, empty = first_answer(tiny, image, stop="".join(piece.text for piece in pieces)[:1])
    assert "".join(piece.text for piece in empty) == ""
    assert empty[-1].finish_reason == "stop"
    question, answer = session.history
    assert answer == {"role": "assistant", "content": ""}
    assert len(session.images) == 1
    following = "".join(piece.text for piece in session.ask("And?", stop=()))
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
    _, pieces = first_answer(tiny, image)
    letter = "".join(piece.text for piece in pieces)[:1]
    session = ChatSession(*tiny, max_tokens=4, stop_token_ids=(), stop=letter)
    conversation = Conversation(*tiny, session, {})
    talk(conversation, monkeypatch, f"/image {image}", "What?", "/images")
    assert conversation.pending == []
    assert len(session.history) == 2
    out, err = capsys.readouterr()
    assert out == "\n"
    assert err.endswith("dot.png': 2 tiles, 64 tokens\n")


def test_images_of_an_answer_that_fails_wait_on(tiny, image, monkeypatch, capsys):
    pieces = Answer.pieces

    def fail(answer):
        yield dataclasses.replace(next(pieces(answer)), text="")
        raise RequestError("out of luck")

    monkeypatch.setattr(Answer, "pieces", fail)
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
    conversation.command("/image" + " dot.png" * 40)
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
