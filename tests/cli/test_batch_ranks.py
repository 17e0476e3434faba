"""Several processes share the requests of a batch, and whichever of them dies, nothing is lost."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jvlm_mlx.cli.main import main
from tests.helpers.batch_files import read

ROOT = Path(__file__).parents[2]


@pytest.fixture
def files(tmp_path):
    requests = [{"id": f"r{number}", "prompt": f"Question {number}"} for number in range(16)]
    requests[5] = {"id": "r5", "promt": "typo"}
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, requests)))
    return tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"


def arguments(golden_folder, files, tokens):
    return [
        str(files[0]), "-o", str(files[1]), "--model", str(golden_folder / "tiny"),
        "--max-tokens", str(tokens), "--batch-size", "2",
    ]  # fmt: skip


def outcomes(path):
    return {one["id"]: one.get("token_ids", one.get("error")) for one in read(path)}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_rank(rank, golden_folder, files, hosts):
    return subprocess.Popen(
        [sys.executable, "-m", "jvlm_mlx.batch", *arguments(golden_folder, files, 100)],
        cwd=ROOT,
        env={**os.environ, "MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)},
        stderr=subprocess.PIPE,
        text=True,
    )


# Three starts of the program are what takes its time here.
def test_the_death_of_a_process_loses_nothing(golden_folder, files, tmp_path):
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{free_port()}"] for _ in range(2)]))
    own_files = [files[1].with_name(f"answers.jsonl.rank{rank}") for rank in range(2)]
    processes = [start_rank(rank, golden_folder, files, hosts) for rank in range(2)]
    try:
        deadline = time.monotonic() + 120
        while not all(own.exists() and own.read_bytes().count(b"\n") for own in own_files):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        processes[1].kill()
        processes[0].terminate()  # as mlx.launch does then
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert not files[1].exists()
    before = {}
    for own in own_files:
        written = own.read_bytes()
        own_lines = written[: written.rfind(b"\n") + 1].splitlines()
        before |= {
            one["id"]: one.get("token_ids", one.get("error")) for one in map(json.loads, own_lines)
        }
    assert 2 <= len(before) < 16

    launcher = [str(Path(sys.executable).with_name("mlx.launch")), "--backend", "ring", "-n", "2"]
    program = [sys.executable, "-m", "jvlm_mlx.batch", *arguments(golden_folder, files, 100)]
    resumed = subprocess.run(
        [*launcher, *program],
        cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    said = resumed.stdout + resumed.stderr
    assert said.count("answered") == 1, said
    assert "of 16 requests" in said
    assert [one["row"] for one in read(files[1])] == list(range(1, 17))
    assert before.items() <= outcomes(files[1]).items()
    names = sorted(path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock"))
    assert names == ["answers.jsonl", "hosts.json", "questions.jsonl"]

    alone = files[1].with_name("alone.jsonl")
    assert main(["batch", *arguments(golden_folder, (files[0], alone), 100)]) == 1
    assert outcomes(alone) == outcomes(files[1])


def test_one_process_resumes_what_several_began(golden_folder, files, capsys):
    command = ["batch", *arguments(golden_folder, files, 4)]
    assert main(command) == 1
    whole = files[1].read_bytes()
    lines = whole.splitlines(keepends=True)
    files[1].unlink()
    for rank, own in enumerate((lines[0:10:2], [*lines[1:10:2], lines[11][:60]])):
        files[1].with_name(f"answers.jsonl.rank{rank}").write_bytes(b"".join(own))
    capsys.readouterr()
    assert main(command) == 1
    assert "6 answered, 0 failed, 10 done before" in capsys.readouterr().err
    assert [one["row"] for one in read(files[1])] == list(range(1, 17))
    assert sorted(path.name for path in files[1].parent.iterdir()) == [
        "answers.jsonl", "questions.jsonl",
    ]  # fmt: skip


def test_errors_of_other_processes_are_retried(golden_folder, files, capsys):
    command = ["batch", *arguments(golden_folder, files, 4)]
    assert main(command) == 1
    files[1].rename(files[1].with_name("answers.jsonl.rank1"))
    fixed = files[0].read_text().replace("promt", "prompt")
    files[0].write_text(fixed)
    assert main([*command, "--retry-errors"]) == 0
    assert all("text" in one for one in read(files[1]))
    assert len(read(files[1])) == 16
