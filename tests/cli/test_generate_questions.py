"""What `jvlm generate` asks: images and questions from flags, patterns, pipes and defaults."""

import argparse
import io
import json
import os
import sys
import types
from contextlib import ExitStack
from pathlib import Path

import pytest

from jvlm_mlx.cli.generate_questions import (
    DEFAULT_QUESTION,
    Question,
    add_question_arguments,
    extra_stop_tokens,
    prefilled_prompt,
    read_questions,
)
from jvlm_mlx.cli.main import main
from jvlm_mlx.errors import RequestError

COMMAND = ("generate", "--max-tokens", "3")


@pytest.fixture
def terminal(monkeypatch):
    """Standard input is a terminal, where nobody types anything."""
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(isatty=lambda: True))


@pytest.fixture
def pipe(monkeypatch):
    """Standard input is a pipe; call this with what comes through it."""

    with ExitStack() as opened:

        def send(data):
            reader, writer = os.pipe()
            os.write(writer, data)
            os.close(writer)
            stdin = opened.enter_context(os.fdopen(reader, encoding="utf-8"))
            monkeypatch.setattr(sys, "stdin", stdin)

        yield send


def asked(*arguments):
    parser = argparse.ArgumentParser()
    add_question_arguments(parser)
    return read_questions(parser.parse_args(arguments))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-i", "a", "-p", "x"], [("x", ["a"])]),
        (["-i", "a", "b", "-i", "c", "-p", "x"], [("x", ["a", "b", "c"])]),
        (["-i", "a", "-i", "b", "-p", "x", "-p", "y"], [("x", ["a"]), ("y", ["b"])]),
        (["-p", "x", "-p", "y"], [("x", []), ("y", [])]),
        (["--map", "-i", "a", "b", "-p", "x"], [("x", ["a"]), ("x", ["b"])]),
        (["--map", "-i", "a", "-p", "x", "-p", "y"], [("x", ["a"]), ("y", ["a"])]),
        (["--map", "-p", "x", "-p", "y"], [("x", []), ("y", [])]),
        (["-i", "a"], [(DEFAULT_QUESTION, ["a"])]),
    ],
)
def test_flags_pair_questions_and_images(terminal, arguments, expected):
    found = [(question.text, list(question.images)) for question in asked(*arguments)]
    assert found == expected


def test_a_second_question_never_disappears(terminal):
    with pytest.raises(RequestError, match=r"2 questions .* 3 images .* --map"):
        asked("-i", "a", "b", "c", "-p", "x", "-p", "y")


def test_patterns_are_sorted_files(terminal, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("b.png", "a.png", "c.jpg", "[1].png"):
        (tmp_path / name).touch()
    pattern = asked("-i", str(tmp_path / "*.png"), "-p", "x")[0].images
    assert [Path(path).name for path in pattern] == ["[1].png", "a.png", "b.png"]
    assert asked("-i", "~/c.*", "-p", "x")[0].images == (str(tmp_path / "c.jpg"),)
    # What exists under this very name, and addresses, are no patterns.
    for name in (str(tmp_path / "[1].png"), "https://example.org/?a=*"):
        assert asked("-i", name, "-p", "x")[0].images == (name,)


def test_a_folder_is_no_image(terminal, tmp_path):
    with pytest.raises(RequestError, match=r"is a folder; name its images, as in '.*/\*\.jpg', or"):
        asked("-i", f"{tmp_path}/", "-p", "x")
    for name in ("~no-such-user/a.png", "a\0b", "x" * 5000):  # is said where it is opened
        assert asked("-i", name, "-p", "x")[0].images == (name,)


def test_patterns_of_nobody(terminal):
    with pytest.raises(RequestError, match=r"no file matches ~no-such-user/\*"):
        asked("-i", "~no-such-user/*", "-p", "x")


def test_standard_input_is_a_question_or_an_image(pipe):
    pipe(b"What?\n")
    assert asked("-i", "a") == [Question("What?", ("a",))]
    pipe(b"What?\n")
    assert asked("-p", "-", "-p", "And?") == [Question("What?", ()), Question("And?", ())]
    pipe(b"data")
    assert asked("-i", "-", "-p", "x") == [Question("x", (b"data",))]
    pipe(b"data")
    assert asked("-i", "-") == [Question(DEFAULT_QUESTION, (b"data",))]


@pytest.mark.parametrize("arguments", [["-i", "a"], []])
def test_an_empty_pipe_asks_nothing(pipe, arguments):
    pipe(b"")
    with pytest.raises(RequestError, match="standard input is empty"):
        asked(*arguments)


def test_without_any_input_an_image_is_described(monkeypatch):
    """As under cron, where standard input is the null device."""
    with Path(os.devnull).open(encoding="utf-8") as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert asked("-i", "a") == [Question(DEFAULT_QUESTION, ("a",))]
        with pytest.raises(RequestError, match="nothing to answer"):
            asked()


TEXT, IMAGE = {"type": "text", "text": "x"}, {"type": "image"}


@pytest.mark.parametrize(
    ("images", "flags", "expected"),
    [
        (2, {}, "x"),
        (2, {"prompt_first": True}, [TEXT, IMAGE, IMAGE]),
        (1, {"image_labels": True}, "x"),
        (2, {"image_labels": True}, [
            {"type": "text", "text": "Image 1: "}, IMAGE,
            {"type": "text", "text": "Image 2: "}, IMAGE, TEXT,
        ]),
    ],
)  # fmt: skip
def test_text_before_or_after_images(images, flags, expected):
    question = Question("x", ("a", "b")[:images])
    assert question.content(**{"prompt_first": False, "image_labels": False, **flags}) == expected


def test_an_answer_can_be_begun(tiny):
    _, processor = tiny
    question = Question("What <|im_end|> is it?", ("a",))
    arguments = argparse.Namespace(prefill_response="A <|im_end|> dog", system="Be brief.")
    prompt = prefilled_prompt(processor, question, question.text, arguments)
    assert prompt.startswith(" System: Be brief. User: <|image|>What")
    assert prompt.endswith(" Assistant: A <|im_end|> dog")
    special = processor.tokenizer.special_tokens
    ids = processor.tokenizer.encode(prompt, prompt.literals)
    assert special["<|image|>"] in ids
    assert special.get("<|im_end|>") not in ids
    unchanged = argparse.Namespace(prefill_response=None, system=None)
    assert prefilled_prompt(processor, question, question.text, unchanged) == question.text


def test_extra_stop_tokens_are_single_tokens(tiny):
    _, processor = tiny
    assert extra_stop_tokens(processor, []) == {}
    (token,) = processor.tokenizer.encode("e")
    stop = extra_stop_tokens(processor, ["e"])["stop_token_ids"]
    assert stop == {token} | processor.tokenizer.stop_token_ids
    with pytest.raises(RequestError, match=r"--extra-eos-token: .* tokens, not one.*--stop"):
        extra_stop_tokens(processor, ["several words"])


# --- the whole command


@pytest.fixture
def answer(golden_folder, capsys, monkeypatch):
    """Run the command on the small checkpoint; return exit code, standard output and error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        model = ("--model", str(golden_folder / "tiny"))
        code = main([*COMMAND, *model, *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def test_several_questions_have_an_answer_each(answer, golden_folder):
    images = [golden_folder / "images" / name for name in ("dot.png", "square.png")]
    code, out, err = answer("--map", "-i", *images, "-p", "One?", "-p", "Two?", "--json")
    assert (code, err) == (0, "")
    answers = [json.loads(line) for line in out.splitlines()]
    alone = [
        json.loads(answer("-i", image, "-p", text, "--json")[1])["token_ids"]
        for text in ("One?", "Two?")
        for image in images
    ]
    assert [one["token_ids"] for one in answers] == alone


def test_one_of_several_may_fail(answer, golden_folder):
    image = golden_folder / "images" / "dot.png"
    code, out, err = answer("--map", "-i", "absent.png", image, "-p", "What?")
    assert code == 1
    assert out.count("\n") == 1
    lines = err.splitlines()
    assert lines[0] == "== 'absent.png': What?"
    assert lines[1].startswith("error: ")
    assert lines[2] == f"== '{image}': What?"


def test_a_conversation_is_continued_in_its_file(answer, golden_folder, tmp_path):
    image, file = golden_folder / "images" / "dot.png", tmp_path / "talk.safetensors"
    flags = ("--prompt-cache-file", file, "--json")
    first = json.loads(answer("-i", image, "-p", "What?", "--system", "Short.", *flags)[1])
    second = json.loads(answer("-p", "And?", *flags)[1])
    assert first["cached_tokens"] == 0
    assert second["cached_tokens"] > first["prompt_tokens"] - 2
    code, _, err = answer("-p", "And?", "--system", "Long.", *flags)
    assert (code, "has its own system message" in err) == (1, True)


def test_text_that_the_terminal_cannot_show_is_escaped(monkeypatch, golden_folder):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))
    module = sys.modules["jvlm_mlx.generate"]
    monkeypatch.setattr(module, "_answer", lambda *_: print("\N{CJK UNIFIED IDEOGRAPH-4F60}"))
    assert main([*COMMAND, "--model", str(golden_folder / "tiny"), "-p", "Hi"]) == 130
    assert written.getvalue() == b"\\u4f60\n"
