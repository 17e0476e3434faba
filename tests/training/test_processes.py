"""Two processes that MLX connects learn what one process learns from the same batches."""

import json
import os
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest

from tests.helpers.processes import free_port
from tests.helpers.training_case import write_examples


def start(output, data, golden_folder, *options, rank=None, hosts=None):
    environment = {**os.environ}
    if rank is not None:
        environment |= {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)}
    command = [
        sys.executable, "-m", "jvlm_mlx.train", "--model", golden_folder / "tiny",
        "--data", data, "--output", output, "--text-fraction", "0.5", "--dtype", "float32",
        "--batch-size", "4", "--iters", "2", "--learning-rate", "1e-3", "--warmup-iters", "0",
        "--fine-tune-type", "full", "--max-crops", "1", "--quiet", *options,
    ]  # fmt: skip
    return subprocess.Popen(
        [str(part) for part in command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def together(tmp_path, golden_folder):
    """Runs the same command in two processes; gives their outputs and exit codes."""

    def together(output, data, *options):
        hosts = tmp_path / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{free_port()}"] for _ in range(2)]))
        processes = [
            start(output, data, golden_folder, *options, rank=rank, hosts=hosts)
            for rank in range(2)
        ]
        try:
            said = [process.communicate(timeout=300) for process in processes]
        finally:
            for process in processes:
                process.kill()
        return said, [process.returncode for process in processes]

    return together


def metrics(output):
    lines = (output / "training" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_two_processes_learn_what_one_learns(tmp_path, golden_folder, together):
    data = write_examples(tmp_path)
    alone, pair = tmp_path / "alone", tmp_path / "pair"
    process = start(alone, data, golden_folder)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    said, codes = together(pair, data)
    assert codes == [0, 0], said
    # Only the first process speaks.
    assert said[0][0] == f"written: {pair}\n"
    assert said[1][0] == ""
    for one, other in zip(metrics(alone), metrics(pair), strict=True):
        # The same sums in another order.
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert other["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-4)
        assert other["target_tokens"] == one["target_tokens"]
    expected, found = (mx.load(str(one / "model.safetensors")) for one in (alone, pair))
    start_weights = mx.load(str(golden_folder / "tiny" / "model.safetensors"))
    assert expected.keys() == found.keys()
    for path, array in expected.items():
        # AdamW divides small gradients by their own size, so rounding shows in single numbers.
        difference = np.abs(np.array(array) - np.array(found[path]))
        assert difference.mean() < 1e-4, path
    head = "lm_head.weight"
    assert not np.allclose(np.array(expected[head]), np.array(start_weights[head]), atol=1e-4)


def test_batches_that_cannot_be_shared_are_refused(tmp_path, together):
    data = write_examples(tmp_path)
    said, codes = together(tmp_path / "output", data, "--batch-size", "3")
    assert codes == [1, 1]
    assert said[0][1] == (
        "error: 2 processes cannot share batches of 3 examples;"
        " set --batch-size to a multiple of 2\n"
    )
    assert not (tmp_path / "output").exists()
