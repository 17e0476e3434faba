"""Standard input that is no text, or absent; standard output that takes nothing more."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from jvlm_mlx.cli.main import main
from tests.helpers.image_files import encode

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


# --- a dash is standard input or output, everywhere


@pytest.fixture
def send(monkeypatch):
    """Sends bytes to standard input."""
    return lambda data: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.fixture
def document():
    pages = [Image.new("RGB", (40, 30), color) for color in ("red", "green", "blue")]
    return encode(pages[0], "PDF", save_all=True, append_images=pages[1:])


def test_images_and_documents_from_standard_input(send, document, golden_folder, capsys, tmp_path):
    pytest.importorskip("pypdfium2")
    model = ["--model", str(golden_folder / "tiny"), "--max-tokens", "2"]
    png = (golden_folder / "images" / "dot.png").read_bytes()
    send(png)
    assert main(["generate", "-i", "-", "-p", "What?", *model, "--quiet"]) == 0
    expected = capsys.readouterr().out
    send(png)
    assert main(["batch", "--images", "-", "-p", "What?", "-o", "-", *model]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert (json.loads(line)["id"], json.loads(line)["text"]) == (
        "standard-input", expected.rstrip("\n")
    )  # fmt: skip
    send(document)
    assert main(["read", "-", *model]) == 0
    marks = re.findall(r"<!-- page: (\S+) -->", capsys.readouterr().out)
    assert marks == [f"standard-input.pdf#{number}" for number in (1, 2, 3)]
    # A file of responses belongs to what was sent, not to its name.
    output = ["-o", str(tmp_path / "out.md")]
    for data, said in ((document, "3 answered"), (document, "3 done before"), (document + b" ", 1)):
        send(data)
        code = main(["read", "-", *output, *model])
        assert said in (capsys.readouterr().err if isinstance(said, str) else [code])


@pytest.mark.parametrize(
    ("arguments", "data", "message"),
    [
        (["read", "-"], b"", "-: standard input is empty"),
        (["read", "-", "a.png"], b"", "- is standard input, and no other image can be beside it"),
        (["batch", "--images", "-", "-p", "a", "-o", "-"], b"", "-: standard input is empty"),
        (["explain", "-i", "-", "-p", "a", "-o", "-"], b"", "-i -: standard input is empty"),
        (["explain", "-i", "-", "-p", "a", "-o", "-"], b"none", "the image given as 4 bytes is no"),
    ],
)
def test_what_does_not_come_is_one_line(arguments, data, message, send, golden_folder, capsys):
    send(data)
    assert main([*arguments, "--model", str(golden_folder / "tiny")]) == 1
    out, said = capsys.readouterr()
    assert (out, said.count("\n")) == ("", 1)
    assert said.startswith(f"error: {message}")


def test_images_on_standard_output(send, golden_folder, capsysbinary):
    assert main(["demo", "-o", "-"]) == 0
    png, said = capsysbinary.readouterr()
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
    assert b"--model demo --image - --prompt" in said
    send(png)
    command = ["explain", "-i", "-", "-p", "What?", "-o", "-", "--max-tokens", "1", "--quiet"]
    assert main([*command, "--model", str(golden_folder / "tiny")]) == 0
    drawn, said = capsysbinary.readouterr()
    with Image.open(io.BytesIO(drawn)) as image:
        assert image.format == "PNG"
    assert said.strip()
