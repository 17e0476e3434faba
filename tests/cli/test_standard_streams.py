"""Standard input that is no text, or absent; standard output that takes nothing more."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jvlm_mlx.cli.main import main

ROOT = Path(__file__).parents[2]
LATIN = "Grüße\n".encode("latin-1")


def strict_input(data):
    """Standard input as it is on a Mac, where bytes that are no UTF-8 are errors."""
    return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", errors="strict")


def test_a_question_that_is_no_utf8_is_refused_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", strict_input(LATIN))
    assert main(["generate", "--model", "demo"]) == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: the question on standard input is no utf-8 text\n")


def test_a_conversation_survives_what_is_no_utf8(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", strict_input(b"Hello\n" + LATIN + b"/stats\n"))
    assert main(["chat", "--model", "demo", "--max-tokens", "2"]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 2
    assert "error" not in err
    assert "answer: 2 tokens" in err


@pytest.mark.parametrize("subcommand", ["generate", "chat"])
def test_absent_input_is_no_input(subcommand, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)
    code = main([subcommand, "--model", "demo"])
    out, err = capsys.readouterr()
    assert out == ""
    expected = "error: there is nothing to answer: give a question with -p, or an image\n"
    assert (code, err) == ((1, expected) if subcommand == "generate" else (0, ""))
    assert sys.stdin is None


def shell(command, **environment):
    """Run a shell's command; return the exit code of the program in it, and standard error."""
    finished = subprocess.run(
        ["bash", "-c", command, "bash", sys.executable, "-m", "jvlm_mlx.generate"],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, check=False,
        cwd=ROOT, env={**os.environ, "PYTHONUNBUFFERED": "", **environment},
    )  # fmt: skip
    return finished.returncode, finished.stderr.decode()


# The reader has left, for certain, before anything is written.
GONE = 'exec 3> >(exec true); wait $!; "$@" {} >&3'


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", ["--model demo -p Hi --max-tokens 3 --json", "--help"])
def test_a_reader_that_has_left_is_no_error(arguments, unbuffered):
    assert shell(GONE.format(arguments), PYTHONUNBUFFERED=unbuffered) == (0, "")


def test_a_reader_of_errors_that_has_left_ends_quietly():
    # Nothing can be shown; 120 would be Python's own complaint at exit.
    code, _ = shell(GONE.format("--model absent -p Hi") + " 2>&3")
    assert code == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("flag", ["--json", "--stream"])
def test_output_that_is_full_is_one_line(flag, unbuffered):
    command = f'"$@" --model demo -p Hi --max-tokens 3 {flag} > /dev/full'
    code, err = shell(command, PYTHONUNBUFFERED=unbuffered)
    # Without a buffer nothing tells whether it was standard output.
    place = "" if unbuffered else "cannot write standard output: "
    assert (code, err) == (1, f"error: {place}No space left on device\n")


def test_help_of_the_whole_command_for_a_reader_that_has_left():
    program = "import sys; from jvlm_mlx.cli.main import main; sys.exit(main(['--help']))"
    finished = subprocess.run(
        ["bash", "-c", GONE.format(""), "bash", sys.executable, "-c", program],
        stderr=subprocess.PIPE, check=False, cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
    )  # fmt: skip
    assert (finished.returncode, finished.stderr) == (0, b"")


def test_an_error_elsewhere_is_not_blamed_on_the_output(monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys.modules["jvlm_mlx.generate"], "load_model", fail)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO()))
    with pytest.raises(OSError, match="No space"):
        main(["generate", "-p", "Hi"])


def test_a_file_that_may_not_be_used_is_named(monkeypatch, capsys):
    def fail(*_):
        raise PermissionError(13, "Permission denied", "somewhere")

    monkeypatch.setattr(sys.modules["jvlm_mlx.generate"], "load_model", fail)
    assert main(["generate", "-p", "Hi"]) == 1
    assert capsys.readouterr().err == "error: somewhere: Permission denied\n"
