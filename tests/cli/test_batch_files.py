"""Files of requests: responses are kept, and a file that is something else is not touched."""

import csv
import dataclasses
import errno
import io
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import jvlm_mlx
from jvlm_mlx.cli.batch_responses import ResponseFile
from jvlm_mlx.cli.main import main
from jvlm_mlx.errors import RequestError


@pytest.fixture
def images(golden_folder):
    return {name: golden_folder / "images" / f"{name}.png" for name in ("dot", "square")}


@pytest.fixture
def files(tmp_path, images):
    rows = [
        {"id": "a", "prompt": "Describe this image.", "images": ["dot.png"]},
        {"prompt": "Hi", "max_tokens": 3},
        {"id": "b", "messages": [{"role": "user", "content": [
            {"type": "image", "image": "dot.png"}, {"type": "text", "text": "And"},
            {"type": "image"}]}], "image": str(images["square"])},
        {"prompt": "Café", "temperature": 1, "seed": 1, "system": None, "stop": ["\u0000"]},
        {"id": 7, "prompt": "Nowhere", "images": "missing.png"},
        {"prompt": "Hi", "max_token": 3},
        {"prompt": "Hi", "max_tokens": "three"},
        {"prompt": "Hi", "messages": []},
    ]  # fmt: skip
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "dot.png").write_bytes(images["dot"].read_bytes())
    # An empty line between, and lines that are no JSON or no object.
    questions = tmp_path / "questions.jsonl"
    questions.write_text(text.replace("\n", "\n\n", 1) + "\n{broken\n[1]\n", encoding="utf-8")
    return questions, tmp_path / "answers.jsonl", rows


def run(golden_folder, files, *arguments):
    return main(
        ["batch", str(files[0]), "--output", str(files[1]), "--max-tokens", "6",
         "--model", str(golden_folder / "tiny"), *arguments]
    )  # fmt: skip


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_file_of_requests(tiny, golden_folder, files, images, capsys):
    assert run(golden_folder, files, "--batch-size", "2") == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert "4 answered, 6 failed, 0 done before, of 10 requests" in output.err
    answers = {answer.get("id", answer["row"]): answer for answer in read(files[1])}
    assert set(answers) == {"a", 3, "b", 5, "7", 7, 8, 9, 10, 11}
    dot = str(images["dot"])
    expected = {
        "a": jvlm_mlx.generate(*tiny, "Describe this image.", dot, max_tokens=6),
        3: jvlm_mlx.generate(*tiny, "Hi", max_tokens=3),
        "b": jvlm_mlx.generate(
            *tiny,
            [{"role": "user", "content": [
                {"type": "image"}, {"type": "text", "text": "And"}, {"type": "image"}]}],
            [dot, images["square"]], max_tokens=6,
        ),
        5: jvlm_mlx.generate(*tiny, "Café", temperature=1, seed=1, max_tokens=6),
    }  # fmt: skip
    for key, result in expected.items():
        assert answers[key]["text"] == result.text
        assert answers[key]["token_ids"] == list(result.token_ids)
        assert answers[key]["finish_reason"] == result.finish_reason
    for key, said in (
        ("7", "missing.png' cannot be opened"), (7, "'max_token' is no key of a request"),
        (8, "max_tokens must be an integer: found 'three'"), (9, "either prompt or messages"),
        (10, "line 10 is no JSON"), (11, "line 11 is no JSON object"),
    ):  # fmt: skip
        assert said in answers[key]["error"]


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
    ("rows", "output", "said"),
    [
        ('{"id": "a", "prompt": "x"}\n{"id": "a", "prompt": "y"}', None, "lines 1 and 2 of"),
        ('{"prompt": "x"}', "precious\nwords\n", "line 1 of"),
        (None, None, "cannot be read"),
    ],
)
def test_files_that_cannot_be_used(golden_folder, tmp_path, rows, output, said, capsys):
    files = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    if rows is not None:
        files[0].write_text(rows)
    if output is not None:
        files[1].write_text(output)
    assert run(golden_folder, files) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1
    if output is not None:
        assert files[1].read_text() == output


@pytest.fixture
def loaded(tiny, monkeypatch):
    """Loads nothing again, and takes any adapters for none."""
    monkeypatch.setattr("jvlm_mlx.batch.load_model", lambda *_: tiny)


@pytest.fixture
def written(golden_folder, tmp_path, loaded, capsys):
    """Answers to two questions, the first of which has an id."""
    files = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    files[0].write_text(r'{"id": "\u00e9\\\"1", "prompt": "Hi"}' + '\n{"prompt": "Ho"}\n')
    assert run(golden_folder, files) == 0
    capsys.readouterr()
    return files


def refused(golden_folder, files, said, capsys, *arguments):
    assert run(golden_folder, files, *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1


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


def test_requests_from_a_pipe(golden_folder, tmp_path, images, loaded, monkeypatch):
    """It can be read only once, and has no folder: images start from the current one."""
    monkeypatch.chdir(images["dot"].parent)
    readable, writable = os.pipe()
    os.write(writable, b'{"prompt": "Hi"}\n{"prompt": "What?", "images": ["dot.png"]}\n')
    os.close(writable)
    output = tmp_path / "answers.jsonl"
    try:
        assert run(golden_folder, (f"/dev/fd/{readable}", output)) == 0
    finally:
        os.close(readable)
    assert [answer["row"] for answer in read(output)] == [1, 2]


def test_no_requests_no_output(golden_folder, tmp_path, capsys):
    questions, output = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    refused(golden_folder, (questions, output), "cannot be read", capsys)
    questions.write_text('{"id": "a", "prompt": "x"}\n{"id": "a", "prompt": "y"}')
    refused(golden_folder, (questions, output), "same id", capsys)
    assert not output.exists()


def test_a_byte_order_mark(golden_folder, written):
    written[0].write_bytes(b"\xef\xbb\xbf" + written[0].read_bytes())
    whole = written[1].read_bytes()
    assert run(golden_folder, written) == 0
    assert written[1].read_bytes() == whole


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


def test_requests_that_cannot_be_read_fail_alone(golden_folder, written, capsys):
    rows = [
        {"prompt": "Who?", "images": ["~tmp.png"]},
        {"prompt": "Long?", "images": ["a" * 5000 + ".png"]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "image": "~no-such-user/x"}]}
            ]
        },
        {"prompt": "Nul?", "images": ["a\0b"]},
    ]
    deep = ["[" * 200_000] + [
        '{"id": ' + "[" * depth + "]" * depth + ', "prompt": "Hi"}' for depth in (930, 970, 1010)
    ]
    with written[0].open("a") as file:
        file.writelines(line + "\n" for line in [*map(json.dumps, rows), *deep])
    assert run(golden_folder, written) == 1
    answers = {answer["row"]: answer for answer in read(written[1])}
    assert set(answers) == set(range(1, 11))
    for number, said in (
        (3, "~tmp.png"), (4, "too long"), (5, "~no-such-user/x"), (6, "null byte"), (7, "no JSON")
    ):  # fmt: skip
        assert said in answers[number]["error"]
        assert "\n" not in answers[number]["error"]
        assert len(answers[number]["error"]) < 300


def test_addresses_in_messages_start_from_the_folder(golden_folder, written, images, capsys):
    folder = written[0].parent
    (folder / "dot.png").write_bytes(images["dot"].read_bytes())
    parts = [
        {"type": "image", "image": "dot.png"},
        {"type": "image_url", "image_url": "dot.png"},
        {"type": "image_url", "image_url": {"url": "dot.png", "detail": "low"}},
        {"type": "image_url", "image_url": (folder / "dot.png").as_uri()},
    ]
    rows = [{"messages": [{"role": "user", "content": [part]}]} for part in parts]
    written[1].unlink()
    written[0].write_text("\n".join(map(json.dumps, rows)))
    assert run(golden_folder, written) == 0
    answers = read(written[1])
    assert len(answers) == 4
    assert all(answer["token_ids"] == answers[0]["token_ids"] for answer in answers)


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


# --- standard streams and endless input


def test_standard_input_and_output(golden_folder, images, loaded, monkeypatch, capsysbinary):
    lines = b'{"prompt": "Hi"}\n{"prompt": "What?", "images": ["dot.png"]}\n'
    monkeypatch.chdir(images["dot"].parent)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    assert run(golden_folder, ("-", "-")) == 0
    out, err = capsysbinary.readouterr()
    assert [json.loads(line)["row"] for line in out.splitlines()] == [1, 2]
    assert b"2 answered, 0 failed, 0 done before, of 2 requests" in err


def test_endless_lines_are_refused(golden_folder, tmp_path, capsys, monkeypatch):
    output = tmp_path / "answers.jsonl"
    refused(golden_folder, ("/dev/zero", output), "line 1 of /dev/zero is longer than", capsys)
    monkeypatch.setattr("jvlm_mlx.cli.batch_requests.MAX_BYTES", 100)
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"prompt": "Hi"}\n{"prompt": "' + "x" * 100 + '"}\n')
    refused(golden_folder, (questions, output), "line 2 of", capsys)
    assert not output.exists()


# --- requests


def test_reasons_are_counted_by_kind(golden_folder, written, capsys):
    rows = [{"prompt": "Hi", "images": [f"missing{n}.png"]} for n in range(3)]
    rows += [{"prompt": "Hi", "max_tokens": -n} for n in range(1, 3)] + [{"promt": "\x1b[2J"}]
    with written[0].open("a") as file:
        file.writelines(f"{json.dumps(row)}\n" for row in rows)
    assert run(golden_folder, written) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "0 answered, 6 failed, 2 done before, of 8 requests"
    assert [re.sub("'.*'", "", line) for line in lines[1:]] == [
        "  3 failed:  cannot be opened: No such file or directory",
        "  2 failed: max_tokens is -1; it must be from 1 to 2147483647",
        "  1 failed:  is no key of a request; expected id, prompt, messages, image, images,"
        " system or an option",
    ]


def test_ids_that_are_no_valid_text_are_found_again(golden_folder, written, capsys):
    with written[0].open("a") as file:
        file.write('{"id": "\\ud800", "prompt": "Hi"}\n')
    assert run(golden_folder, written) == 0
    capsys.readouterr()
    assert run(golden_folder, written) == 0
    assert "0 answered, 0 failed, 3 done before" in capsys.readouterr().err
    assert len(read(written[1])) == 3


ODD_VALUES = (
    None, True, -1, 0, 1, 0.5, 10**18, 10**30, -(2**63), 1e308, -1e30, 1e-320, float("nan"), "",
    "x", "\ud800", "9" * 500, [], [[]], {}, ["a", 1], {"type": "image"}, "file:///dev/zero",
    "http://127.0.0.1:9/", "data:image/png;base64,AAAA", "/dev", "~nobody/x.png", "a\0b",
)  # fmt: skip


def mutated_requests(seed, image):
    """Return lines of requests, each damaged somewhere."""
    chance = random.Random(seed)
    names = [field.name for field in dataclasses.fields(jvlm_mlx.GenerationOptions)]
    part = {"type": "image", "image": str(image)}
    valid = (
        {"prompt": "Hi", "max_tokens": 2},
        {"prompt": "What?", "image": str(image), "max_crops": 1},
        {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "And?"}]}]},
    )
    for number in range(300):
        request = {"id": f"{number}", **json.loads(json.dumps(chance.choice(valid)))}
        for _ in range(chance.choice((1, 1, 2))):
            key = chance.choice((*request, *names))
            if key == "id":
                continue
            if key == "messages":
                message = request["messages"][0] if "messages" in request else {}
                message[chance.choice(("role", "content", "x"))] = chance.choice(ODD_VALUES)
            # Valid, but an answer of a million tokens takes its time.
            elif key != "max_tokens":
                request[key] = chance.choice(ODD_VALUES)
        line = json.dumps(request)
        if chance.random() < 0.1:
            place = chance.randrange(len(line))
            line = line[:place] + chance.choice(("", "{", '"', "\0", "[" * 500)) + line[place + 1 :]
        yield line


def test_mutated_requests_fail_alone(golden_folder, images, tmp_path, loaded, capsys):
    files = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    lines = list(mutated_requests(3, images["dot"]))
    files[0].write_text("\n".join([*lines, '{"prompt": "Hi", "id": "last"}']))
    assert run(golden_folder, files, "--max-tokens", "2") == 1
    responses = read(files[1])
    assert len(responses) == 301
    assert responses[-1]["id"] == "last" or "text" in responses[-1]
    errors = [one["error"] for one in responses if "error" in one]
    assert 150 < len(errors) < 290
    assert not [error for error in errors if "\n" in error or len(error) > 500]
    # What is not expected is logged with its traceback.
    assert "Traceback" not in capsys.readouterr().err


# --- images and one prompt


@pytest.fixture
def scans(tmp_path, images):
    folder = tmp_path / "scans"
    for name in ("b.png", "a [1].png", "deep/c.PNG"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(images["dot"].read_bytes())
    (folder / "notes.txt").write_text("no image")
    return folder


def ask_images(golden_folder, output, *arguments):
    return main(
        ["batch", "--output", str(output), "--max-tokens", "4", "--model",
         str(golden_folder / "tiny"), *arguments]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["scans/*.png"], ["scans/a [1].png", "scans/b.png"]),
        (["scans/**/*.[pP]*"], ["scans/a [1].png", "scans/b.png", "scans/deep/c.PNG"]),
        (["scans"], ["scans/a [1].png", "scans/b.png", "scans/deep/c.PNG"]),
        (["scans/b.png", "scans/a [1].png", "scans/*.png"], ["scans/a [1].png", "scans/b.png"]),
    ],
)
def test_one_prompt_for_many_images(
    tiny, golden_folder, scans, images, loaded, monkeypatch, patterns, names
):
    monkeypatch.chdir(scans.parent)
    assert ask_images(golden_folder, "out.jsonl", "-p", "What?", "--images", *patterns) == 0
    responses = {one["id"]: one["text"] for one in read(Path("out.jsonl"))}
    expected = jvlm_mlx.generate(*tiny, "What?", images["dot"], max_tokens=4).text
    assert responses == dict.fromkeys(names, expected)


def test_images_are_resumed_and_made_a_table(golden_folder, scans, loaded, monkeypatch, capsys):
    monkeypatch.chdir(scans.parent)
    (scans / "broken.png").write_text("no image")
    flags = ("-p", "What?", "--images", "scans/*.png")
    assert ask_images(golden_folder, "out.csv", *flags) == 1
    with Path("out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["scans/a [1].png", "scans/b.png", "scans/broken.png"]
    assert rows[0]["text"] == rows[1]["text"] != ""
    assert (rows[0]["error"], "broken.png" in rows[2]["error"]) == ("", True)
    table = Path("out.csv").read_bytes()
    Path("out.csv").unlink()
    capsys.readouterr()
    assert ask_images(golden_folder, "out.csv", *flags) == 1
    assert "0 answered, 0 failed, 3 done before (1 of them failed)" in capsys.readouterr().err
    assert Path("out.csv").read_bytes() == table
    (scans / "broken.png").write_bytes((scans / "b.png").read_bytes())
    assert ask_images(golden_folder, "out.csv", *flags, "--retry-errors") == 0
    assert Path("out.csv").read_bytes().count(rows[0]["text"].encode()) == 3
    assert sorted(path.name for path in Path().iterdir()) == ["out.csv", "out.csv.jsonl", "scans"]


def test_a_table_of_something_else_is_not_replaced(golden_folder, scans, monkeypatch, capsys):
    monkeypatch.chdir(scans.parent)
    Path("out.csv").write_text("precious")
    assert ask_images(golden_folder, "out.csv", "-p", "What?", "--images", "scans/*.png") == 1
    assert "out.csv is there, but out.csv.jsonl" in capsys.readouterr().err
    assert Path("out.csv").read_text() == "precious"
    assert not list(Path().glob(".out*"))


def test_a_document_has_a_section_for_each_image(golden_folder, scans, loaded, monkeypatch):
    monkeypatch.chdir(scans.parent)
    assert ask_images(golden_folder, "out.md", "-p", "What?", "--images", "scans/*.png") == 0
    responses = {one["id"]: one["text"].strip() for one in read(Path("out.md.jsonl"))}
    assert Path("out.md").read_text(encoding="utf-8") == "\n".join(
        f"## {name}\n\n{responses[name]}\n" for name in sorted(responses)
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give either a file of requests, or --images and --prompt"),
        (["x.jsonl", "--images", "*"], "give either a file"),
        (["--images", "scans/*.png"], "--images and --prompt belong together"),
        (["x.jsonl", "-p", "What?"], "--images and --prompt belong together"),
        (["-p", "What?", "--images", "scans/*.gif"], "'scans/*.gif' matches no image file"),
        (["-p", "What?", "--images", "~no-such-user/*"], "'~no-such-user/*' cannot be read"),
    ],
)
def test_images_and_prompt_belong_together(
    golden_folder, scans, capsys, monkeypatch, arguments, said
):
    monkeypatch.chdir(scans.parent)
    assert ask_images(golden_folder, "out.jsonl", *arguments) == 1
    assert f"error: {said}" in capsys.readouterr().err
    assert not Path("out.jsonl").exists()


# --- two runs at once


def test_an_output_that_is_being_written_is_refused(golden_folder, written, capsys):
    with ResponseFile(written[1]):
        refused(golden_folder, written, "is being written by another process", capsys)
    assert run(golden_folder, written) == 0
    assert sorted(path.name for path in written[1].parent.iterdir()) == [
        "answers.jsonl", "questions.jsonl",
    ]  # fmt: skip


# --- interruptions


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
