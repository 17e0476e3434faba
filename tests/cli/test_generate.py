"""The terminal as a user meets it: real processes, answers on stdout, all else on stderr."""

import base64
import fcntl
import io
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jvlm_mlx.cli.main import SUBCOMMANDS, main
from tests.helpers.image_files import encode

ROOT = Path(__file__).parents[2]


@pytest.fixture
def image(golden_folder):
    return golden_folder / "images" / "shapes.png"


@pytest.fixture
def tiny_folder(golden_folder):
    return str(golden_folder / "tiny")


def command(*arguments):
    return [sys.executable, "-m", "jvlm_mlx.generate", *map(str, arguments)]


def run(*arguments, stdin=b""):
    """Run `python -m jvlm_mlx.generate`; return exit code, stdout and stderr."""
    finished = subprocess.run(
        command(*arguments), input=stdin, capture_output=True, check=False, cwd=ROOT
    )
    return finished.returncode, finished.stdout.decode(), finished.stderr.decode()


def test_answer_is_all_of_stdout(tiny_folder, image):
    code, out, err = run(
        "--model", tiny_folder, "-i", image, "-p", "Describe this image.", "--max-tokens", 9
    )
    assert (code, err) == (0, "")
    assert out.endswith("\n")
    assert out.strip()
    unstreamed = run(
        "--model", tiny_folder, "--image", image, "--prompt", "Describe this image.",
        "--max-tokens", 9, "--no-stream",
    )  # fmt: skip
    assert unstreamed == (0, out, "")


def test_a_damaged_tiff_is_one_line(tiny_folder, tmp_path):
    """Pillow's libtiff has a message of its own for it, and prints them itself."""
    file = tmp_path / "scan.tiff"
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    data = encode(Image.fromarray(noise), "TIFF", compression="tiff_lzw")
    file.write_bytes(data[:20] + b"\xff" * 500 + data[520:])
    code, out, err = run("--model", tiny_folder, "-i", file, "-p", "What is this?")
    assert (code, out) == (1, "")
    assert err == f"error: '{file}' cannot be decoded: decoder error -2\n"


def test_json_has_everything(tiny_folder, image, named_case):
    code, out, err = run(
        "--model", tiny_folder, "-i", image, "-p", "Describe this image.",
        "--max-tokens", 5, "--json", "--verbose",
    )  # fmt: skip
    assert code == 0
    answer = json.loads(out)
    expected = named_case("shapes").expected
    assert answer["token_ids"] == expected["greedy_tokens"][0, :5].tolist()
    assert (answer["prompt_tokens"], answer["tiles"]) == (165, [9])
    assert answer["image_tokens"] == 154
    assert answer["finish_reason"] == "length"
    assert {"text", "prompt_tps", "generation_tps", "peak_memory"} <= set(answer)
    assert "165 tokens" in err
    assert "peak memory" in err


def test_images_and_prompts_from_everywhere(tiny_folder, image):
    arguments = ("--model", tiny_folder, "--max-tokens", 5)
    reference = run(*arguments, "-i", image, "-p", "Hi")
    data_uri = "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode()
    assert run(*arguments, "-i", data_uri, "-p", "Hi") == reference
    assert run(*arguments, "-i", image.as_uri(), "-p", "Hi") == reference
    assert run(*arguments, "-i", "-", "-p", "Hi", stdin=image.read_bytes()) == reference
    assert run(*arguments, "-i", image, stdin=b"Hi\n") == reference
    two = run(*arguments, "-i", image, "-i", image, "-p", "Hi")
    assert two[0] == 0
    assert two != reference


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (("--model", "absent", "-p", "Hi"), b"", "there is no folder absent"),
        (("-i", "absent.png", "-p", "Hi"), b"", "absent.png"),
        (("-i", "-", "-p", "Hi"), b"no image", "8 bytes"),
        (("-i", "-"), b"", "standard input is empty"),
        (("-i", "-", "-i", "-", "-p", "Hi"), b"", "standard input can be"),
        (("-i", "-", "-p", "-"), b"", "standard input can be"),
        ((), b"", "nothing to answer"),
        # Noticed before a model is looked for.
        (("-p", "Hi", "--max-tokens", "0", "--model", "absent"), b"", "--max-tokens is 0"),
        (("-p", "Hi", "--kv-bits", "4"), b"", "head of 16"),
        (("-p", "Hi", "--max-kv-size", "3"), b"", "--max-kv-size is 3"),
    ],
)
def test_mistakes_are_one_line(tiny_folder, arguments, stdin, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
    model = () if "--model" in arguments else ("--model", tiny_folder)
    code = main(["generate", *model, *arguments])
    out, err = capsys.readouterr()
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_mistakes_are_no_traceback_in_a_process_either():
    code, out, err = run("--model", "absent", "-p", "Hi")
    assert (code, out) == (1, "")
    assert err == (
        "error: there is no folder absent; give a folder or a repository like jinaai/jina-vlm\n"
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--color", "blue"], "unknown flag --color"),
        (["--promt=Hi"], "unknown flag --promt; did you mean --prompt?"),
        (["--temperatur", "0.x"], "--temperature/--temp: invalid float value: '0.x'"),
        (["-p", "What", "is", "this"], "unexpected argument 'is'; text with spaces needs quotes"),
        (["-p", "-x"], "-p/--prompt: expected one argument; a value that begins with a dash"
         " is given as --prompt=VALUE"),
        (["--kv-bits", "7"], "--kv-bits: invalid choice: 7 (choose from 2, 3, 4, 5, 6, 8)"),
    ],
)  # fmt: skip
def test_usage_errors_are_one_line(capsys, arguments, line):
    with pytest.raises(SystemExit) as left:
        main(["generate", *arguments])
    assert left.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"error: {line}; jvlm generate --help shows more\n")


@pytest.mark.parametrize("subcommand", SUBCOMMANDS)
def test_every_subcommand_has_a_help(capsys, subcommand):
    with pytest.raises(SystemExit) as left:
        main([subcommand, "--help"])
    assert left.value.code == 0
    assert f"usage: jvlm {subcommand}" in capsys.readouterr().out


def test_a_misspelled_subcommand_is_one_line(capsys):
    with pytest.raises(SystemExit) as left:
        main(["genrate"])
    assert left.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "did you mean generate?" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-m", "256"), "-m is the model, as in the release's script"),
        (("--draft-model", "small"), "--draft-model: no smaller model"),
        (("--max-tokens", "0"), "--max-tokens is 0; it must be"),
        (("--temperature", "-1"), "--temperature is -1.0; it must"),
        (("--kv-bits", "4", "--max-kv-size", "9"), "--kv-bits and --max-kv-size exclude"),
        (("--prompt-cache-file", "a", "--prefill-response", "b"), "exclude each other"),
        (("-i", "absent/*.png"), "no file matches absent/*.png"),
        (("-i", "a.png", "-p", "One?", "-p", "Two?"), "3 questions (-p) and 1 images (-i)"),
    ],
)
def test_messages_name_flags_as_they_are_typed(capsys, tiny_folder, arguments, message):
    model = () if "-m" in arguments else ("--model", tiny_folder)
    assert main(["generate", "-p", "Hi", *model, *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {message}") or message in err
    assert err.count("\n") == 1


def test_remote_code_is_never_trusted(capsys, tiny_folder):
    flags = ("--trust-remote-code", "--max-tokens", "1")
    assert main(["generate", "--model", tiny_folder, "-p", "Hi", *flags]) == 0
    assert "--trust-remote-code has no effect" in capsys.readouterr().err


def test_interrupt_keeps_what_was_said(tiny_folder, image):
    process = subprocess.Popen(
        command(
            "--model", tiny_folder, "-i", image, "-p", "Describe this image.",
            "--max-tokens", 20_000, "--repetition-penalty", 2,
        ),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, bufsize=0,
    )  # fmt: skip
    assert process.stdout is not None
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (first + rest).decode().strip()
    assert "Traceback" not in err.decode()


def test_reader_that_goes_away_is_no_error(tiny_folder, image):
    process = subprocess.Popen(
        command("--model", tiny_folder, "-i", image, "-p", "Hi", "--max-tokens", 2000),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert process.stderr.read() == b""
    process.stderr.close()


def on_a_terminal(*arguments):
    """Run with standard error on a terminal; return what was shown there."""
    terminal, theirs = pty.openpty()
    rows_and_columns = struct.pack("HHHH", 24, 80, 0, 0)
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, rows_and_columns)
    process = subprocess.Popen(
        command(*arguments), stdout=subprocess.DEVNULL, stderr=theirs, cwd=ROOT,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            block = os.read(terminal, 4096)
        except OSError:  # the other side is closed
            break
        if not block:
            break
        shown += block
    os.close(terminal)
    assert process.wait(timeout=60) == 0
    return shown.decode()


def test_progress_is_shown_on_a_terminal_unless_quiet(tiny_folder, image):
    arguments = ("--model", tiny_folder, "-i", image, "-p", "Hi", "--max-tokens", 2)
    shown = on_a_terminal(*arguments)
    assert all(stage in shown for stage in ("loading", "tiles", "prefill")), shown
    assert on_a_terminal(*arguments, "--quiet") == ""


def test_one_command_with_a_subcommand_for_everything(capsys, tiny_folder):
    assert main(["generate", "--model", tiny_folder, "-p", "Hi", "--max-tokens", "2"]) == 0
    assert capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert "jvlm-mlx" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        main(["sing"])
    assert left.value.code == 2
