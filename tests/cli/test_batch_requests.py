"""What `jvlm batch` reads: files, pipes and endless input, each request on its own."""

import dataclasses
import io
import json
import os
import random
import re
import sys

import pytest

import jvlm_mlx
from tests.helpers.batch_files import read, refused, run


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


def test_a_byte_order_mark(golden_folder, written):
    written[0].write_bytes(b"\xef\xbb\xbf" + written[0].read_bytes())
    whole = written[1].read_bytes()
    assert run(golden_folder, written) == 0
    assert written[1].read_bytes() == whole


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
