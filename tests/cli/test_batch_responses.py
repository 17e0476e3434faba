"""What `jvlm batch` writes: responses are kept and resumed from, other files are not touched."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import jvlm_mlx
from jvlm_mlx.cli.batch_responses import ResponseFile
from jvlm_mlx.errors import RequestError
from tests.helpers.batch_files import read, refused, run


def test_resuming_runs_nothing_twice(golden_folder, files, capsys, monkeypatch):
    run(golden_folder, files)
    whole = files[1].read_bytes()
    capsys.readouterr()
    # Everything is there: not even a model is loaded.
    monkeypatch.setattr("jvlm_mlx.batch.load_model", None)
    # The requests that failed are in the file still, and the exit code says so.
    assert run(golden_folder, files) == 1
    said = "0 answered, 0 failed, 10 done before (6 of them failed), of 10 requests"
    assert said in capsys.readouterr().err
    assert files[1].read_bytes() == whole


@pytest.mark.parametrize("cut", [1, 30, -2])
def test_a_half_written_line_is_replaced(golden_folder, files, cut, capsys):
    run(golden_folder, files)
    lines = files[1].read_bytes().splitlines(keepends=True)
    files[1].write_bytes(b"".join(lines[:3]) + lines[3][:cut])
    capsys.readouterr()
    run(golden_folder, files)
    assert "3 done before" in capsys.readouterr().err
    again = files[1].read_bytes().splitlines(keepends=True)
    assert again[:3] == lines[:3]
    assert sorted(answer["row"] for answer in read(files[1])) == [1, 3, 4, 5, 6, 7, 8, 9, 10, 11]


def test_a_whole_last_line_without_its_end_is_kept(golden_folder, files, capsys):
    run(golden_folder, files)
    whole = files[1].read_bytes()
    files[1].write_bytes(whole[:-1])
    run(golden_folder, files)
    assert files[1].read_bytes() == whole


def test_errors_are_retried_if_wanted(golden_folder, files, images, capsys):
    run(golden_folder, files)
    (files[0].parent / "missing.png").write_bytes(images["square"].read_bytes())
    capsys.readouterr()
    assert run(golden_folder, files, "--retry-errors") == 1
    assert "1 answered, 5 failed, 4 done before" in capsys.readouterr().err
    answers = read(files[1])
    assert len(answers) == 10
    assert next(answer for answer in answers if answer.get("id") == "7")["text"]


def test_responses_to_other_requests_are_not_reused(golden_folder, files, capsys):
    run(golden_folder, files)
    capsys.readouterr()
    assert run(golden_folder, files, "--temperature", "0.5") == 1
    assert "request 'a' to another question or with other settings" in capsys.readouterr().err
    files[0].write_text(files[0].read_text().replace("Describe this", "Describe that"))
    assert run(golden_folder, files) == 1
    assert "to another question" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        '{"prompt": "Hi"}',
        "words",
        "many\nwords",
        '{"prompt": "H',
        '{"id": "a", "prompt": "H',
        '{"id": "a" ',
        '{"row": 1, "prompt"',
        '{"row": 1}',
        '{"row": "one", "request": "two"}',
        '{"id": [], "row": 1, "request": "two"}',
        " {",
        "[" * 200_000,
    ],
)
def test_foreign_files_are_not_touched(golden_folder, written, content, capsys):
    for before in (b"", written[1].read_bytes()):
        written[1].write_bytes(before + content.encode())
        refused(golden_folder, written, "is no response of this command", capsys)
        assert written[1].read_bytes() == before + content.encode()


def test_a_response_may_be_cut_anywhere(golden_folder, written, capsys):
    whole = written[1].read_bytes()
    first = whole.index(b"\n") + 1
    for start, end in ((0, first), (first, len(whole))):
        # Up to the text of the answer, and then a few.
        for cut in (*range(1, 70), end - start - 3, end - start - 2):
            written[1].write_bytes(whole[:start] + whole[start : start + cut])
            with ResponseFile(written[1]):
                assert written[1].read_bytes() == whole[:start]


def test_the_requests_are_not_the_output(golden_folder, written, tmp_path, capsys):
    questions = written[0].read_bytes()
    (tmp_path / "link").symlink_to(written[0])
    for output in (written[0], tmp_path / "link"):
        refused(golden_folder, (written[0], output), "is the file of requests", capsys)
    assert written[0].read_bytes() == questions


def test_the_output_is_a_regular_file(golden_folder, written, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    for output in (tmp_path, tmp_path / "pipe"):
        refused(golden_folder, (written[0], output), "is no regular file", capsys)


def test_an_output_behind_a_link_stays_there(golden_folder, written, tmp_path):
    whole = written[1].read_bytes()
    (tmp_path / "link").symlink_to(written[1])
    written[1].write_bytes(whole[:-5])
    assert run(golden_folder, (written[0], tmp_path / "link")) == 0
    assert (tmp_path / "link").is_symlink()
    assert len(read(written[1])) == 2


def test_no_requests_no_output(golden_folder, tmp_path, capsys):
    questions, output = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    refused(golden_folder, (questions, output), "cannot be read", capsys)
    questions.write_text('{"id": "a", "prompt": "x"}\n{"id": "a", "prompt": "y"}')
    refused(golden_folder, (questions, output), "same id", capsys)
    assert not output.exists()


@pytest.mark.parametrize("flag", ["--adapter-path", "--image-folder"])
def test_adapters_and_image_folders_belong_to_the_request(
    golden_folder, written, tmp_path, flag, capsys, monkeypatch
):
    said = "with other settings"
    refused(golden_folder, written, said, capsys, flag, str(tmp_path / "one"))
    written[1].unlink()
    assert run(golden_folder, written, flag, str(tmp_path / "one")) == 0
    capsys.readouterr()
    refused(golden_folder, written, said, capsys, flag, str(tmp_path / "two"))
    refused(golden_folder, written, said, capsys)
    # The same folder under another name is the same.
    monkeypatch.chdir(tmp_path)
    assert run(golden_folder, written, flag, "one") == 0
    assert "2 done before" in capsys.readouterr().err


def test_a_full_disk(golden_folder, written, capsys):
    whole = written[1].read_bytes()
    with written[0].open("a") as file:
        file.writelines(f'{{"prompt": "Question {number}"}}\n' for number in range(20))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 100, limits[1]))
    try:
        refused(golden_folder, written, "cannot be written", capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert run(golden_folder, written) == 0
    assert written[1].read_bytes().startswith(whole)
    assert len(read(written[1])) == 22


def test_a_disk_that_is_full_at_the_end(written):
    class Full:
        def close(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    output = ResponseFile(written[1])
    output._stack.callback(Full().close)
    with pytest.raises(RequestError, match="cannot be written: No space"):
        output.__exit__(None, None, None)


def test_ids_that_are_no_valid_text_are_found_again(golden_folder, written, capsys):
    with written[0].open("a") as file:
        file.write('{"id": "\\ud800", "prompt": "Hi"}\n')
    assert run(golden_folder, written) == 0
    capsys.readouterr()
    assert run(golden_folder, written) == 0
    assert "0 answered, 0 failed, 3 done before" in capsys.readouterr().err
    assert len(read(written[1])) == 3


def test_an_output_that_is_being_written_is_refused(golden_folder, written, capsys):
    with ResponseFile(written[1]):
        refused(golden_folder, written, "is being written by another process", capsys)
    assert run(golden_folder, written) == 0
    assert sorted(path.name for path in written[1].parent.iterdir()) == [
        "answers.jsonl", "questions.jsonl",
    ]  # fmt: skip


def command(golden_folder, files):
    return [
        sys.executable, "-m", "jvlm_mlx.batch", str(files[0]), "-o", str(files[1]),
        "--model", str(golden_folder / "tiny"), "--max-tokens", "40", "--batch-size", "2",
    ]  # fmt: skip


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_after_an_interruption_the_same_command_resumes(golden_folder, tmp_path, tiny, sent):
    files = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    prompts = [f"Question {number}" for number in range(24)]
    files[0].write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in prompts))
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        command(golden_folder, files), cwd=root, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None:
        if files[1].exists() and files[1].read_bytes().count(b"\n") >= 3:
            break
        time.sleep(0.01)
    os.kill(process.pid, sent)
    _, said = process.communicate(timeout=120)
    interrupted = files[1].read_bytes()
    assert 3 <= interrupted.count(b"\n") < 24
    if sent == signal.SIGINT:
        assert process.returncode == 130
        assert "resumes from here" in said
    done = subprocess.run(
        command(golden_folder, files), cwd=root, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert files[1].read_bytes().startswith(interrupted[: interrupted.rfind(b"\n") + 1])
    answers = {answer["row"]: answer["token_ids"] for answer in read(files[1])}
    assert len(read(files[1])) == len(answers) == 24
    for row in (1, 17, 24):
        expected = jvlm_mlx.generate(*tiny, prompts[row - 1], max_tokens=40)
        assert answers[row] == list(expected.token_ids)
