"""The terminal: `python -m jvlm_mlx.train` and `fuse`, recipes, refusals, Ctrl-C."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jvlm_mlx.cli.main import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_OK
from jvlm_mlx.cli.training_options import DEFAULTS, training_config
from jvlm_mlx.cli.training_progress import TrainingBars
from jvlm_mlx.training.metrics import read_metrics
from jvlm_mlx.training.step_report import StepReport
from tests.helpers.training_case import QUESTION, run_arguments, write_rows
from tests.helpers.training_case import refusal_of_training as refused
from tests.helpers.training_case import run_command as run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture
def arguments(golden_folder, rows, tmp_path):
    short = run_arguments(golden_folder / "tiny", rows, tmp_path / "out")
    return [*short, "--learning-rate", "1e-3"]


def metrics(output):
    return read_metrics(Path(output) / "training" / "metrics.jsonl")


def config(**values):
    return training_config(DEFAULTS | values, values.pop("steps", 1000))


def test_adapters_are_trained_used_and_fused(capsys, arguments, golden_folder, rows, tmp_path):
    model, out, fused = golden_folder / "tiny", tmp_path / "out", tmp_path / "fused"
    image = rows.parent / "red.png"
    code, stdout, stderr = run(
        capsys, "train", *arguments, "--steps", 3, "--adapter", "lora", "--rank", 2,
        "--adapter-parts", "connector", "decoder", "--adapter-layers", 2,
        "--learning-rate", "2e-2",
    )  # fmt: skip
    assert (code, stdout, stderr) == (EXIT_OK, f"written: {out}\n", "")
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["fine_tune_type"] == "lora"
    assert config["lora_parameters"]["rank"] == 2
    asked = ["-p", QUESTION, "-i", image, "--max-crops", 1, "-m", 4]
    answers = []
    for flags in (["--model", model], ["--model", model, "--adapter-path", out]):
        code, stdout, _ = run(capsys, "generate", *flags, *asked)
        assert code == EXIT_OK
        answers.append(stdout)
    assert answers[0] != answers[1]
    code, stdout, _ = run(
        capsys, "fuse", "--model", model, "--adapter-path", out, "--output", fused
    )
    assert (code, stdout) == (EXIT_OK, f"written: {fused}\n")
    assert run(capsys, "generate", "--model", fused, *asked)[1] == answers[1]
    (tmp_path / "asked.jsonl").write_text(json.dumps({"prompt": QUESTION, "images": [str(image)]}))
    code, stdout, _ = run(
        capsys, "batch", "--model", model, "--adapter-path", out, tmp_path / "asked.jsonl",
        "-o", tmp_path / "answers.jsonl", "--max-crops", 1, "-m", 4,
    )  # fmt: skip
    assert code == EXIT_OK
    answer = json.loads((tmp_path / "answers.jsonl").read_text())
    assert answer["text"] == answers[1].removesuffix("\n")


def test_a_wrong_adapter_is_refused_in_one_line(capsys, golden_folder, tmp_path):
    code, _, err = run(
        capsys, "generate", "--model", golden_folder / "tiny", "--adapter-path", tmp_path, "-p", "?"
    )
    assert code == EXIT_ERROR
    assert err == f"error: {tmp_path} holds no adapter: it has no adapter_config.json\n"


def test_a_recipe_says_what_the_command_line_does_not(capsys, arguments, tmp_path):
    recipe = {
        "steps": 9, "connector_learning_rate": 0.004, "connector_warmup_steps": 1,
        "warmup_steps": 2, "freeze": ["vision_tower"], "betas": [0.8, 0.9], "decay": "constant",
        "gradient_checkpointing": True, "validation": None,
    }  # fmt: skip
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(recipe))
    code, _, _ = run(capsys, "train", *arguments, "--recipe", file, "--steps", 2)
    assert code == EXIT_OK
    lines = metrics(tmp_path / "out")
    assert [line["learning_rates"] for line in lines] == [
        {"connector": 0.004, "decoder": 0.0005},
        {"connector": 0.004, "decoder": 0.001},
    ]
    # What was done is written down as a recipe, too.
    recorded = json.loads((tmp_path / "out" / "training" / "recipe.json").read_text())
    assert recorded["steps"] == 2
    assert recorded["freeze"] == ["vision_tower"]
    assert recorded["learning_rate"] == 0.001


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ('{"learning_rat": 1}', "learning_rat is no option of train"),
        ('{"steps": "many"}', "argument --steps: invalid int value: 'many'"),
        ('{"decay": "slow"}', "argument --decay: invalid choice: 'slow'"),
        ('{"compile": 1}', "compile cannot be 1"),
        ('{"steps": true}', "steps cannot be true"),
        ('{"steps": [1]}', "steps cannot be [1]"),
        ("[]", "is no recipe; expected an object"),
        ("{", "is no JSON"),
    ],
)
def test_a_recipe_with_mistakes_is_refused(capsys, arguments, tmp_path, recipe, message):
    file = tmp_path / "recipe.json"
    file.write_text(recipe)
    line = refused(capsys, *arguments, "--recipe", file)
    assert line.startswith(f"error: {file}")
    assert message in line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give the length of the training with either --steps or --epochs"),
        (["--steps", 3, "--epochs", 1], "either --steps or --epochs"),
        (["--epochs", 0], "epochs 0.0 must be above 0"),
        (["--steps", 0], "steps 0 must be at least 1"),
        (["--steps", 3, "--learning-rate", 0], "learning rate 0.0 must be above 0"),
        (["--steps", 3, "--betas", 0.9], "betas are two numbers; found 1"),
        (["--steps", 3, "--recipe", "none.json"], "none.json cannot be read"),
        (["--steps", 3, "--data", "none.json"], "none.json cannot be read"),
        (["--steps", 3, "--text-share", 2], "text_share 2.0 must be between 0 and 1"),
        (["--steps", 3, "--text-share", 0], "text_share is 0, but there are rows"),
        (["--steps", 3, "--max-length", 10], "tokens"),
        (["--steps", 3, "--resume"], "holds no training run to go on with; leave out --resume"),
        (["--steps", 3, "--adapter", "lora", "--rank", 0], "adapter rank 0 must be at least 1"),
        (["--steps", 3, "--adapter", "lora", "--adapter-keys", "x"], "adapter key x names no"),
        (
            ["--steps", 3, "--freeze", "vision_tower", "connector", "decoder"],
            "nothing is left to train",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(capsys, arguments, tmp_path, flags, message):
    code, out, err = run(capsys, "train", *arguments, *flags)
    assert code == EXIT_ERROR
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_quantized_model_is_not_trained_itself(capsys, arguments, golden_folder):
    line = refused(capsys, *arguments, "--steps", 3, "--model", golden_folder / "tiny-mlx-4bit")
    assert "quantized weights cannot be trained; train an adapter" in line


def test_an_output_that_exists_is_refused(capsys, arguments, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("")
    line = refused(capsys, *arguments, "--steps", 3)
    assert line.endswith("out exists already; give another path")


def test_steps_follow_from_epochs(capsys, arguments, tmp_path):
    # Seven rows are two batches of four, so five epochs in steps of two batches are five.
    code, _, _ = run(capsys, "train", *arguments, "--epochs", 5, "--accumulate", 2)
    assert code == EXIT_OK
    assert [line["step"] for line in metrics(tmp_path / "out")] == [1, 2, 3, 4, 5]


def test_rates_of_a_part_count_more_than_those_of_all():
    found = config(
        learning_rate=1e-3, warmup_steps=7, connector_learning_rate=5e-3, connector_warmup_steps=3,
        vision_tower_decay="linear", decoder_floor=0.5, decay="constant",
    )  # fmt: skip
    assert (found.connector.learning_rate, found.connector.warmup_steps) == (5e-3, 3)
    assert (found.decoder.learning_rate, found.decoder.warmup_steps) == (1e-3, 7)
    assert (found.vision_tower.decay, found.connector.decay) == ("linear", "constant")
    assert (found.vision_tower.floor, found.decoder.floor) == (0.1, 0.5)


def test_the_connector_learns_faster_and_warms_up_sooner_unless_told_otherwise():
    found = config(steps=1000)
    assert found.connector.learning_rate > found.decoder.learning_rate
    assert found.decoder.learning_rate > found.vision_tower.learning_rate
    assert (found.connector.warmup_steps, found.decoder.warmup_steps) == (10, 100)
    same = config(adapter="lora")
    assert same.connector.learning_rate == same.decoder.learning_rate


def test_batches_of_one_source_come_first(capsys, arguments, tmp_path):
    """Batches of one source have images in all rows or in none; mixed ones in some."""
    code, _, _ = run(capsys, "train", *arguments, "--steps", 6, "--single-source-steps", 4)
    assert code == EXIT_OK
    images = [
        round(line["images_per_second"] * line["seconds"]) for line in metrics(tmp_path / "out")
    ]
    assert set(images[:4]) == {0, 4}
    assert not set(images[4:]) & {0, 4}


def test_a_run_that_goes_on_keeps_its_config(capsys, arguments, tmp_path):
    flags = ["--steps", 3, "--save-every", 1]
    assert run(capsys, "train", *arguments, *flags)[0] == EXIT_OK
    out = tmp_path / "out"
    line = refused(capsys, "--output", out, "--resume")
    assert line == f"error: the run in {out} is finished; its result can be used as it is"
    before = metrics(out)
    # As if it had been killed before the result was written.
    for name in ("config.json", "model.safetensors", "model.safetensors.index.json"):
        (out / name).unlink()
    line = refused(capsys, "--output", out, "--resume", "--learning-rate", "2e-3")
    assert "learning_rate was 0.001 when this run began, and cannot be 0.002 now" in line
    code, stdout, _ = run(capsys, "train", "--output", out, "--resume", "--keep", 1)
    assert (code, stdout) == (EXIT_OK, f"written: {out}\n")
    assert [line["loss"] for line in metrics(out)] == [line["loss"] for line in before]


def test_a_chart_is_drawn_on_request(capsys, arguments, tmp_path, rows):
    pytest.importorskip("matplotlib")
    code, _, _ = run(
        capsys, "train", *arguments, "--steps", 3, "--chart", "--validation", rows,
        "--validate-every", 2,
    )  # fmt: skip
    assert code == EXIT_OK
    assert (tmp_path / "out" / "training" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_matplotlib_is_named_before_the_run(capsys, arguments, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    line = refused(capsys, *arguments, "--steps", 3, "--chart")
    assert "a chart needs matplotlib: pip install 'jvlm-mlx[plot]'" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["train", "fuse"])
def test_the_modules_run(verb):
    process = subprocess.run(
        [sys.executable, "-m", f"jvlm_mlx.{verb}", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == EXIT_OK
    assert f"usage: python -m jvlm_mlx.{verb}" in process.stdout


def start(arguments, **environment):
    command = [sys.executable, "-m", "jvlm_mlx.train", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | environment,
    )  # fmt: skip


def test_ctrl_c_keeps_what_was_learned(capsys, arguments, tmp_path):
    out = tmp_path / "out"
    flags = ["--steps", 400, "--decay", "constant", "--warmup-steps", 0]
    process = start([*arguments, *flags])
    deadline = time.monotonic() + 240
    while len(metrics(out)) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == EXIT_INTERRUPTED
    assert stdout == ""
    done = metrics(out)[-1]["step"]
    assert 2 <= done < 400
    assert stderr == (
        f"stopped after step {done}, to go on with:"
        f" python -m jvlm_mlx.train --output {out} --resume\n"
    )
    # Nothing is left of it but what it says.
    assert [entry.name for entry in out.iterdir()] == ["training"]
    assert (out / "training" / f"step-{done:08}" / "config.json").is_file()


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def test_two_processes_learn_what_one_does(capsys, arguments, tmp_path):
    flags = ["--steps", 2, "--max-grad-norm", 1]
    assert run(capsys, "train", *arguments, *flags)[0] == EXIT_OK
    both = [*arguments, *flags, "--output", tmp_path / "both"]
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(2)]))
    processes = [start(both, MLX_RANK=str(rank), MLX_HOSTFILE=str(hosts)) for rank in (1, 0)]
    for process in processes:
        output = process.communicate(timeout=240)
        assert process.returncode == EXIT_OK, output
    one, two = metrics(tmp_path / "out"), metrics(tmp_path / "both")
    for alone, together in zip(one, two, strict=True):
        # The same sums in another order.
        assert together["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert together["gradient_norm"] == pytest.approx(alone["gradient_norm"], rel=1e-4)
        assert together["target_tokens"] == alone["target_tokens"]
    assert (tmp_path / "both" / "config.json").is_file()


def test_the_bar_shows_loss_and_memory(capsys):
    report = StepReport(
        step=3, loss=1.2345, validation_loss=2.5, gradient_norm=1.0, learning_rates={},
        target_tokens=3, tokens_per_second=3.0, images_per_second=1.0, seconds=1.0,
        peak_memory=1_500_000_000,
    )  # fmt: skip
    with TrainingBars(True) as bars:
        bars.training(5, 2)(report)
    shown = capsys.readouterr().err
    assert "3/5" in shown
    assert "loss=1.234, memory=1.5 GB, validation=2.500" in shown
    with TrainingBars(False) as bars:
        bars.training(5, 2)(report)
    assert capsys.readouterr().err == ""
