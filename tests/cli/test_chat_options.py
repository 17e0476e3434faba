"""What a saved conversation keeps of its options, and what flags change."""

import argparse
import io
import json
import sys

import pytest

from jvlm_mlx import ChatSession, batch
from jvlm_mlx.cli.arguments import add_generation_arguments, generation_options, given_options
from jvlm_mlx.cli.chat_commands import Conversation
from jvlm_mlx.cli.main import main

SAVED = {"max_tokens": 2, "temperature": 0.5, "seed": 3, "max_crops": 1}


@pytest.fixture
def file(tiny, tmp_path):
    ChatSession(*tiny, **SAVED).save(tmp_path / "talk.session")
    return str(tmp_path / "talk.session")


def chat(monkeypatch, capsys, golden_folder, lines, *arguments):
    """Run the subcommand; return exit code, stdout, stderr, and the last conversation's session."""
    sessions = []
    make = Conversation.__init__

    def watch(conversation, *given):
        make(conversation, *given)
        sessions.append(conversation)

    monkeypatch.setattr(Conversation, "__init__", watch)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode())))
    code = main(["chat", "--model", str(golden_folder / "tiny"), *arguments])
    out, err = capsys.readouterr()
    return code, out, err, sessions[-1].session if sessions else None


def test_saved_options_hold(monkeypatch, capsys, golden_folder, file):
    *_, session = chat(monkeypatch, capsys, golden_folder, [], "--load", file)
    assert session.options == SAVED
    *_, session = chat(monkeypatch, capsys, golden_folder, [f"/load {file}"])
    assert session.options == SAVED


def test_flags_that_are_given_go_before_saved_options(monkeypatch, capsys, golden_folder, file):
    # A flag counts as given even if it says what is the default.
    flags = ("--temperature", "0", "--max-tokens", "4")
    expected = {**SAVED, "temperature": 0, "max_tokens": 4}
    *_, session = chat(monkeypatch, capsys, golden_folder, [], "--load", file, *flags)
    assert session.options == expected
    *_, session = chat(monkeypatch, capsys, golden_folder, [f"/load {file}"], *flags)
    assert session.options == expected


def test_new_images_are_cut_as_the_session_says(monkeypatch, capsys, golden_folder, file):
    opened = golden_folder / "images" / "shapes.png"
    image = ("--image", str(opened))
    _, _, err, _ = chat(
        monkeypatch, capsys, golden_folder, [f"/image {opened}"], "--load", file, *image
    )
    assert err.count(": 2 tiles") == 2
    _, _, err, _ = chat(monkeypatch, capsys, golden_folder, [], *image)
    assert ": 9 tiles" in err


def test_options_that_exclude_each_other_are_one_line(
    monkeypatch, capsys, golden_folder, tiny, tmp_path
):
    ChatSession(*tiny, kv_bits=4).save(tmp_path / "talk")
    code, _, err, _ = chat(
        monkeypatch, capsys, golden_folder, [], "--load", str(tmp_path / "talk"),
        "--max-kv-size", "99",
    )  # fmt: skip
    assert code == 1
    assert err.startswith("error: --kv-bits and --max-kv-size exclude each other")
    assert err.count("\n") == 1


def test_verbs_without_a_saved_conversation_have_all_defaults():
    parser = argparse.ArgumentParser()
    batch.add_arguments(parser)
    arguments = parser.parse_args(["in.jsonl", "-o", "out.jsonl", "--seed", "3"])
    assert given_options(arguments) == {"seed": 3}
    # Answers of a batch that were made before are found by exactly this.
    assert json.dumps(generation_options(arguments), sort_keys=True) == (
        '{"max_tokens": 256, "min_p": 0.0, "prefill_step_size": 2048,'
        ' "repetition_context_size": 20, "seed": 3, "temperature": 0.0, "tile_group_size": 4,'
        ' "top_k": 0, "top_p": 1.0}'
    )


def test_help_names_the_defaults():
    parser = argparse.ArgumentParser()
    add_generation_arguments(parser)
    text = " ".join(parser.format_help().split())
    assert "most tokens of the answer (default: 256)" in text
    assert "enlarge images of a smaller area --max-pixels" in text


def test_standard_input_is_no_image_of_a_chat(monkeypatch, capsys, golden_folder):
    code, _, err, _ = chat(monkeypatch, capsys, golden_folder, ["Hello"], "--image", "-")
    assert code == 1
    assert err == "error: --image -: standard input is the conversation; give a file\n"
