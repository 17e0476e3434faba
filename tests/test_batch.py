"""Many questions: each gets the answer it would get alone, whatever happens to the others."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import jvlm_mlx
from jvlm_mlx import BatchRequest, GenerationCaches, encode_image, generate_batch
from jvlm_mlx.command_line.main import main
from jvlm_mlx.errors import ImageError, RequestError

OPTIONS = {"max_tokens": 10, "stop_token_ids": ()}


@pytest.fixture
def pictures(golden_folder):
    return {
        name: golden_folder / "images" / f"{name}.png" for name in ("dot", "square", "tall", "wide")
    }


@pytest.fixture
def requests(pictures):
    """Ragged lengths and answers, with and without pictures, and every kind of option."""
    return [
        {"prompt": "Describe this image.", "images": pictures["square"]},
        {"prompt": "Hi", "max_tokens": 3},
        {"prompt": "Compare.", "images": [pictures["dot"], pictures["wide"]]},
        {"prompt": "Sampled", "temperature": 1.3, "seed": 3, "top_k": 40, "max_tokens": 14},
        {"prompt": "Say it", "presence_penalty": 50.0, "repetition_context_size": 200},
        {"prompt": "Short window", "max_kv_size": 40, "max_tokens": 35},
        {"prompt": "Hi", "system": "Be brief.", "images": pictures["tall"], "max_crops": 1},
        {"prompt": "Sampled", "temperature": 1.3, "seed": 8, "images": [pictures["dot"]]},
        {"prompt": "Say it", "repetition_penalty": 4.0, "max_tokens": 20},
        {"prompt": "Nothing special", "max_tokens": 1},
    ]


@pytest.fixture
def alone(tiny):
    def ask(request, **options):
        request = {**OPTIONS, **options, **request}
        return jvlm_mlx.generate(
            *tiny, request.pop("prompt"), request.pop("images", None), **request
        )

    return ask


def in_order(answers):
    return sorted(answers, key=lambda answer: answer.index)


@pytest.mark.parametrize(
    ("batch_size", "caches"), [(1, None), (2, GenerationCaches), (3, None), (32, GenerationCaches)]
)
def test_answers_are_those_of_single_runs(tiny, requests, alone, batch_size, caches):
    answers = list(
        generate_batch(
            *tiny, requests, batch_size=batch_size, caches=caches and caches(), **OPTIONS
        )
    )
    assert [answer.index for answer in in_order(answers)] == list(range(len(requests)))
    for answer in answers:
        expected = alone(requests[answer.index])
        assert answer.error is None
        assert answer.result.token_ids == expected.token_ids, answer.index
        for name in ("text", "prompt_tokens", "image_tokens", "tiles", "finish_reason"):
            assert getattr(answer.result, name) == getattr(expected, name)


def test_rows_share_pictures_and_beginnings(tiny, pictures, alone):
    requests = [
        {"prompt": prompt, "images": pictures["wide"]} for prompt in ("One?", "Two?", "Three?")
    ]
    caches = GenerationCaches()
    answers = in_order(generate_batch(*tiny, requests, caches=caches, **OPTIONS))
    for request, answer in zip(requests, answers, strict=True):
        assert answer.result.token_ids == alone(request).token_ids
    assert [answer.result.cached_tokens > 100 for answer in answers] == [False, True, True]
    assert caches.stats()["features"].misses == 1


def test_encoded_pictures(tiny, pictures, alone, golden_folder):
    encoded = encode_image(*tiny, pictures["wide"])
    requests = [BatchRequest(prompt=prompt, images=encoded) for prompt in ("One?", "Two?")]
    for answer in generate_batch(*tiny, requests, **OPTIONS):
        request = {"prompt": requests[answer.index].prompt, "images": pictures["wide"]}
        assert answer.result.token_ids == alone(request).token_ids
    other = jvlm_mlx.load(golden_folder / "tiny")
    other[0].decoder.norm.weight = other[0].decoder.norm.weight * 2
    (answer,) = generate_batch(*other, requests[:1], **OPTIONS)
    assert "another model" in answer.error


def test_a_prompt_that_ends_with_a_picture(tiny, pictures):
    """mlx-lm reads the last token by its id; here it is one that has no logit."""
    _, processor = tiny
    message = {"role": "user", "content": [{"type": "image", "image": pictures["dot"]}]}
    rendered = processor.apply_chat_template([message], add_generation_prompt=False)
    penalty = {"presence_penalty": 5.0}
    requests = [{"prompt": rendered, "images": pictures["dot"], **penalty}, {"prompt": "Hi"}]
    expected = jvlm_mlx.generate(*tiny, rendered, pictures["dot"], **penalty, **OPTIONS)
    assert processor.encode(rendered, 1)[-1] == processor.tokenizer.image_token_ids.image
    answers = in_order(generate_batch(*tiny, requests, **OPTIONS))
    assert answers[0].result.token_ids == expected.token_ids


def test_stop_texts_and_tokens(tiny, alone):
    whole = alone({"prompt": "Hi"}, max_tokens=30)
    stop = whole.text[5:8]
    requests = [
        {"prompt": "Hi", "stop": (stop,)},
        {"prompt": "Hi", "stop_token_ids": {whole.token_ids[4]}},
        {"prompt": "Hi"},
    ]
    answers = in_order(generate_batch(*tiny, requests, max_tokens=30, stop_token_ids=()))
    assert answers[0].result.text == whole.text[: whole.text.index(stop)]
    assert answers[1].result.token_ids == alone(requests[1], max_tokens=30).token_ids
    assert [answer.result.finish_reason for answer in answers] == ["stop", "stop", "length"]
    assert answers[2].result.token_ids == whole.token_ids


def test_errors_belong_to_their_row(tiny, pictures, alone, caplog):
    class Strange:
        def __array__(self, *_, **__):
            raise ZeroDivisionError("strange\npicture")

    requests = [
        {"prompt": "Hi"},
        {"prompt": "What?", "images": "/no/such.png"},
        {"no prompt": 1},
        {"prompt": "Hi", "temprature": 1},
        {"prompt": "Hi", "max_tokens": 0},
        {"prompt": "x", "max_kv_size": 3},
        {"prompt": [{"role": "nobody", "content": "x"}]},
        {"prompt": "What?", "images": Strange()},
        {"prompt": 5},
        {"prompt": "Hello"},
    ]
    answers = in_order(generate_batch(*tiny, requests, batch_size=2, **OPTIONS))
    for answer, expected in zip(
        answers,
        (None, "/no/such.png", "needs a prompt", "no option 'temprature'", "max_tokens is 0",
         "max_kv_size is 3", "role 'nobody'", "strange picture", "not iterable", None),
        strict=True,
    ):  # fmt: skip
        if expected is None:
            request = requests[answer.index]
            assert answer.result.token_ids == alone(request).token_ids
        else:
            assert expected in answer.error
            assert "\n" not in answer.error
            assert answer.result is None


def test_requests_are_taken_as_there_is_room(tiny):
    taken = []

    def requests():
        for index in range(6):
            taken.append(index)
            yield {"prompt": "Hi", "max_tokens": 2 if index == 0 else 4}

    answers = generate_batch(*tiny, requests(), batch_size=2, stop_token_ids=())
    assert next(answers).index == 0
    assert taken == [0, 1]
    assert next(answers).index == 1
    assert taken == [0, 1, 2]
    answers.close()
    assert taken == [0, 1, 2]


def test_cancelling(tiny):
    cancel = threading.Event()
    requests = [{"prompt": "Hi", "max_tokens": tokens} for tokens in (2, 10_000, 10_000)]
    finished = []
    for answer in generate_batch(*tiny, requests, cancel=cancel, stop_token_ids=()):
        finished.append(answer.index)
        cancel.set()
    assert finished == [0]


def test_bad_arguments_are_refused_at_once(tiny):
    with pytest.raises(RequestError, match="batch_size is 0"):
        generate_batch(*tiny, [], batch_size=0)
    with pytest.raises(RequestError, match="temperature"):
        generate_batch(*tiny, [], temperature=-1)
    with pytest.raises(ImageError):
        jvlm_mlx.encode_image(*tiny, "/no/such.png")
    assert list(generate_batch(*tiny, [])) == []


# --- files of questions


@pytest.fixture
def files(tmp_path, pictures):
    rows = [
        {"id": "a", "prompt": "Describe this image.", "images": ["dot.png"]},
        {"prompt": "Hi", "max_tokens": 3},
        {"id": "b", "messages": [{"role": "user", "content": [
            {"type": "image", "image": "dot.png"}, {"type": "text", "text": "And"},
            {"type": "image"}]}], "image": str(pictures["square"])},
        {"prompt": "Café", "temperature": 1, "seed": 1, "system": None, "stop": ["\u0000"]},
        {"id": 7, "prompt": "Nowhere", "images": "missing.png"},
        {"prompt": "Hi", "max_token": 3},
        {"prompt": "Hi", "max_tokens": "three"},
        {"prompt": "Hi", "messages": []},
    ]  # fmt: skip
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "dot.png").write_bytes(pictures["dot"].read_bytes())
    # An empty line between, and rows that are no JSON or no object.
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


def test_a_file_of_questions(tiny, golden_folder, files, pictures, capsys):
    assert run(golden_folder, files, "--batch-size", "2") == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert "4 answered, 6 failed, 0 done before, of 10 rows" in output.err
    answers = {answer.get("id", answer["row"]): answer for answer in read(files[1])}
    assert set(answers) == {"a", 3, "b", 5, "7", 7, 8, 9, 10, 11}
    dot = str(pictures["dot"])
    expected = {
        "a": jvlm_mlx.generate(*tiny, "Describe this image.", dot, max_tokens=6),
        3: jvlm_mlx.generate(*tiny, "Hi", max_tokens=3),
        "b": jvlm_mlx.generate(
            *tiny,
            [{"role": "user", "content": [
                {"type": "image"}, {"type": "text", "text": "And"}, {"type": "image"}]}],
            [dot, pictures["square"]], max_tokens=6,
        ),
        5: jvlm_mlx.generate(*tiny, "Café", temperature=1, seed=1, max_tokens=6),
    }  # fmt: skip
    for key, result in expected.items():
        assert answers[key]["text"] == result.text
        assert answers[key]["token_ids"] == list(result.token_ids)
        assert answers[key]["finish_reason"] == result.finish_reason
    for key, said in (
        ("7", "missing.png' cannot be opened"), (7, "'max_token' is no key of a row"),
        (8, "max_tokens is 'three'; expected a whole number"), (9, "either prompt or messages"),
        (10, "row 10 is no JSON"), (11, "row 11 is no JSON object"),
    ):  # fmt: skip
        assert said in answers[key]["error"]


def test_going_on_asks_nothing_twice(golden_folder, files, capsys, monkeypatch):
    run(golden_folder, files)
    whole = files[1].read_bytes()
    capsys.readouterr()
    # Everything is there: not even a model is loaded.
    monkeypatch.setattr("jvlm_mlx.command_line.batch.load_model", None)
    assert run(golden_folder, files) == 0
    assert "0 answered, 0 failed, 10 done before" in capsys.readouterr().err
    assert files[1].read_bytes() == whole


@pytest.mark.parametrize("cut", [1, 30, -2])
def test_a_half_written_line_is_mended(golden_folder, files, cut, capsys):
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


def test_errors_are_asked_again_if_wanted(golden_folder, files, pictures, capsys):
    run(golden_folder, files)
    (files[0].parent / "missing.png").write_bytes(pictures["square"].read_bytes())
    capsys.readouterr()
    assert run(golden_folder, files, "--retry-errors") == 1
    assert "1 answered, 5 failed, 4 done before" in capsys.readouterr().err
    answers = read(files[1])
    assert len(answers) == 10
    assert next(answer for answer in answers if answer.get("id") == "7")["text"]


def test_answers_to_other_questions_are_not_taken_for_these(golden_folder, files, capsys):
    run(golden_folder, files)
    capsys.readouterr()
    assert run(golden_folder, files, "--temperature", "0.5") == 1
    assert "row 'a' to another question or with other settings" in capsys.readouterr().err
    files[0].write_text(files[0].read_text().replace("Describe this", "Describe that"))
    assert run(golden_folder, files) == 1
    assert "to another question" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "output", "said"),
    [
        ('{"id": "a", "prompt": "x"}\n{"id": "a", "prompt": "y"}', None, "rows 1 and 2 of"),
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


def command(golden_folder, files):
    return [
        sys.executable, "-m", "jvlm_mlx.batch", str(files[0]), "-o", str(files[1]),
        "--model", str(golden_folder / "tiny"), "--max-tokens", "40", "--batch-size", "2",
    ]  # fmt: skip


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_after_an_interruption_the_same_command_goes_on(golden_folder, tmp_path, tiny, sent):
    files = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    prompts = [f"Question {number}" for number in range(24)]
    files[0].write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in prompts))
    root = Path(__file__).parents[1]
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
        assert "goes on from here" in said
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
