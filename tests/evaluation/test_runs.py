"""A model on a benchmark: answered, scored, interrupted and resumed, shared by processes."""

import base64
import io
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

import jvlm_mlx
from jvlm_mlx.cli.main import main
from jvlm_mlx.errors import DataError, RequestError
from jvlm_mlx.evaluate import evaluate, run_benchmark
from tests.helpers.evaluation_files import png, write_tsv
from tests.helpers.processes import free_port

FILES = ("rows.jsonl", "scores.json", "report.md")


def questions(count):
    colors = ["red", "blue", "green", "white"]
    return [
        {
            "index": n,
            "question": f"Which color is number {n}?",
            "A": "red",
            "B": "blue",
            "answer": "AB"[n % 2],
            "category": colors[n % 4],
            "image": png(colors[n % 4], (40 + n, 30)) if n % 3 else "1",
        }
        for n in range(1, count + 1)
    ]


@pytest.fixture
def data(tmp_path):
    return write_tsv(tmp_path / "AI2D_TEST.tsv", questions(12))


def run(tiny, data, output, **options):
    options = {"benchmark": "AI2D_TEST", "model_name": "tiny", "max_tokens": 4, **options}
    return evaluate(*tiny, data=data, output=output, **options)


def rows_of(folder):
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text("utf-8").splitlines()]


def contents(folder):
    return [(folder / name).read_text("utf-8") for name in FILES]


def test_answers_are_those_of_generate(tiny, data, tmp_path):
    content = run(tiny, data, tmp_path / "out", prompts="vlmevalkit")

    rows = rows_of(tmp_path / "out")
    assert [row["index"] for row in rows] == list(range(1, 13))
    question = questions(12)[3]
    alone = jvlm_mlx.generate(
        *tiny,
        "Question: Which color is number 4?\nOptions:\nA. red\nB. blue\n"
        "Please select the correct answer from the options above. \n",
        images=base64.b64decode(question["image"]),
        max_tokens=4,
    )
    assert rows[3]["prediction"] == alone.text
    assert len({row["prompt"] for row in rows}) == 12
    assert content["run"]["prompts"] == "vlmevalkit"
    assert content["run"]["model"] == "tiny"
    assert set(content) >= {"Overall", "red", "intervals", "splits"}


def test_styles_and_models_do_not_share_a_folder(tiny, data, tmp_path):
    run(tiny, data, tmp_path / "out")
    before = contents(tmp_path / "out")

    for other in ({"prompts": "vlmevalkit"}, {"model_name": "other"}, {"max_tokens": 5}):
        with pytest.raises(RequestError, match="choose another output"):
            run(tiny, data, tmp_path / "out", **other)

    assert contents(tmp_path / "out") == before


def test_progress_counts_and_shows_the_score_so_far(tiny, data, tmp_path):
    seen = []
    run(tiny, data, tmp_path / "out", progress=seen.append)

    assert [event.done for event in seen] == list(range(13))
    assert {event.total for event in seen} == {12}
    final = json.loads((tmp_path / "out/scores.json").read_text())["Overall"]
    assert seen[-1].note == f"mean score {final:.1f}"


def test_a_sample_says_what_it_is(tiny, data, tmp_path):
    content = run(tiny, data, tmp_path / "out", limit=5, seed=3)

    assert len(rows_of(tmp_path / "out")) == 5
    assert content["run"]["notes"] == ["5 of 12 questions, drawn with seed 3"]


def test_nothing_runs_before_the_file_is_checked(tmp_path):
    rows = questions(3)
    rows[2]["image"] = base64.b64encode(b"no image at all, whatever it says, " * 4).decode()

    def load():
        raise AssertionError("the model is loaded")

    data = write_tsv(tmp_path / "q.tsv", rows)
    with pytest.raises(DataError, match=r"line 4, column image: .* no image of a"):
        run_benchmark(load, "AI2D_TEST", data, tmp_path / "o")
    assert not (tmp_path / "o").exists()


def truncated_png():
    file = io.BytesIO()
    noise = random.Random(0).randbytes(3 * 64 * 64)
    Image.frombytes("RGB", (64, 64), noise).save(file, "PNG")
    return base64.b64encode(file.getvalue()[:6000]).decode()


def test_a_question_that_fails_is_named_and_counts_as_wrong(tiny, tmp_path, capsys):
    rows = questions(4)
    rows[1]["image"] = truncated_png()
    data = write_tsv(tmp_path / "q.tsv", rows)

    content = run(tiny, data, tmp_path / "out")

    assert content["run"]["notes"] == ["1 questions could not be asked and count as wrong"]
    failed = rows_of(tmp_path / "out")[1]
    assert failed["score"] == 0
    assert "image" in failed["error"]


def test_an_unchanged_run_is_not_made_again(tiny, data, tmp_path):
    run(tiny, data, tmp_path / "out")
    before = contents(tmp_path / "out")

    def load():
        raise AssertionError("the model is loaded")

    run_benchmark(load, "AI2D_TEST", data, tmp_path / "out", model_name="tiny", max_tokens=4)
    assert contents(tmp_path / "out") == before


def start(golden_folder, data, output, environment=None):
    command = [
        sys.executable, "-m", "jvlm_mlx.evaluate", "--benchmark", "AI2D_TEST", "--data", data,
        "--model", golden_folder / "tiny", "--output", output, "--max-tokens", "8",
        "--batch-size", "2", "--quiet",
    ]  # fmt: skip
    return subprocess.Popen(
        [str(part) for part in command],
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines_of(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_killed_run_resumes_to_the_same_result(golden_folder, data, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    _, errors = (process := start(golden_folder, data, whole)).communicate(timeout=120)
    assert process.returncode == 0, errors

    answers = killed / "answers.jsonl"
    for kind in (signal.SIGKILL, signal.SIGINT):
        process, before = start(golden_folder, data, killed), lines_of(answers)
        while process.poll() is None and lines_of(answers) < before + 2:
            time.sleep(0.002)
        process.send_signal(kind)
        process.communicate(timeout=60)
        with answers.open("ab") as file:  # as if it had been killed within a line
            file.write(b'{"id": "99", "row": 99, "requ')
    made = lines_of(answers)
    _, errors = (process := start(golden_folder, data, killed)).communicate(timeout=120)

    assert process.returncode == 0, errors
    assert 4 <= made < 12
    assert contents(killed) == contents(whole)


def test_two_processes_share_a_benchmark(golden_folder, data, tmp_path):
    alone, pair = tmp_path / "alone", tmp_path / "pair"
    _, errors = (process := start(golden_folder, data, alone)).communicate(timeout=120)
    assert process.returncode == 0, errors
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{free_port()}"] for _ in range(2)]))

    processes = [
        start(golden_folder, data, pair, {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)})
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120) for process in processes]

    assert [process.returncode for process in processes] == [0, 0], said
    assert contents(pair) == contents(alone)
    assert said[1][0] == ""


def test_the_whole_path_on_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = ["--model", "demo", "--quiet", "--json"]

    assert main(["evaluate", "write-demo", "demo.tsv", "--count", "20"]) == 0
    for name, flags in {"bf16": [], "thumbnail": ["--max-crops", "1"]}.items():
        arguments = ["--benchmark", "demo", "--data", "demo.tsv", "-o", name, *model, *flags]
        assert main(["evaluate", *arguments]) == 0
    capsys.readouterr()
    arguments = ["bf16", "thumbnail", "--published", "--chart", "c.png", "-o", "c.json"]
    assert main(["evaluate", "compare", *arguments]) == 0

    table = capsys.readouterr().out
    assert "demo, Overall in %, 20 questions" in table
    (comparison,) = json.loads((tmp_path / "c.json").read_text())
    first, second = comparison["sides"]
    assert first["score"] > second["score"]
    assert second["difference"] == pytest.approx(second["score"] - first["score"])
    assert second["worse"] > second["better"]
    with Image.open(tmp_path / "c.png") as chart:
        assert chart.size == (1200, 675)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--benchmark is missing"),
        (["--benchmark", "MME"], "--output is missing"),
        (["--benchmark", "MME", "-o", "x"], "give the benchmark's file with --data"),
        (["--benchmark", "MMEE", "-o", "x", "--data", "d"], "did you mean MME?"),
        (["--benchmark", "MME", "-o", "x", "--data", "no.tsv"], "no.tsv cannot be read"),
        (["compare", "nowhere"], "nowhere is no folder of an evaluation"),
        (["--benchmark", "MME", "-o", "x", "--data", "d", "--judge", "host"], "an address like"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    assert main(["evaluate", *arguments]) == 1

    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


def test_the_list_of_benchmarks(capsys):
    assert main(["evaluate", "--list"]) == 0
    assert "MMMU_DEV_VAL" in capsys.readouterr().out
