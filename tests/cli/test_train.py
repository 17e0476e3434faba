"""The terminal: `python -m jvlm_mlx.train` and `fuse`, config files, refusals, Ctrl-C."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jvlm_mlx.cli.main import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_OK
from jvlm_mlx.cli.progress_bars import TrainingBars
from jvlm_mlx.progress import ProgressEvent
from jvlm_mlx.training.reports import StepReport, read_metrics
from tests.helpers.training_case import QUESTION, run_arguments, write_examples
from tests.helpers.training_case import refusal_of_training as refused
from tests.helpers.training_case import run_command as run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_examples(tmp_path_factory.mktemp("examples"))


@pytest.fixture
def arguments(golden_folder, data, tmp_path):
    short = run_arguments(golden_folder / "tiny", data, tmp_path / "out")
    return [*short, "--learning-rate", "1e-3"]


def metrics(output):
    return read_metrics(Path(output) / "training" / "metrics.jsonl")


def test_adapters_are_trained_used_and_fused(capsys, arguments, golden_folder, data, tmp_path):
    model, out, fused = golden_folder / "tiny", tmp_path / "out", tmp_path / "fused"
    image = data.parent / "red.png"
    code, stdout, stderr = run(
        capsys, "train", *arguments, "--iters", 3, "--fine-tune-type", "lora", "--rank", 2,
        "--lora-modules", "connector", "decoder", "--num-layers", 2, "--learning-rate", "2e-2",
        "--quiet",
    )  # fmt: skip
    assert (code, stdout, stderr) == (EXIT_OK, f"written: {out}\n", "")
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["fine_tune_type"] == "lora"
    assert config["lora_parameters"]["rank"] == 2
    asked = ["-p", QUESTION, "-i", image, "--max-crops", 1, "--max-tokens", 4]
    answers = []
    for flags in (["--model", model], ["--model", model, "--adapter-path", out]):
        code, stdout, _ = run(capsys, "generate", *flags, *asked)
        assert code == EXIT_OK
        answers.append(stdout)
    assert answers[0] != answers[1]
    code, stdout, _ = run(capsys, "fuse", "--adapter-path", out, "--save-path", fused)
    assert (code, stdout) == (EXIT_OK, f"written: {fused}\n")
    assert run(capsys, "generate", "--model", fused, *asked)[1] == answers[1]
    (tmp_path / "asked.jsonl").write_text(json.dumps({"prompt": QUESTION, "images": [str(image)]}))
    code, stdout, _ = run(
        capsys, "batch", "--model", model, "--adapter-path", out, tmp_path / "asked.jsonl",
        "-o", tmp_path / "answers.jsonl", "--max-crops", 1, "--max-tokens", 4,
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


CONFIG = {
    "iters": 9, "connector_learning_rate": 0.004, "connector_warmup_iters": 1, "warmup_iters": 2,
    "freeze": ["vision_tower"], "betas": [0.8, 0.9], "decay": "constant", "grad_checkpoint": True,
    "validation": None,
}  # fmt: skip
OLD_NAMES = {"iters": "steps", "warmup_iters": "warmup_steps",
             "connector_warmup_iters": "connector_warmup_steps",
             "grad_checkpoint": "gradient_checkpointing"}  # fmt: skip
YAML = """\
iters: 9
connector_learning_rate: 4e-3
connector_warmup_iters: 1
warmup_iters: 2
freeze: [vision_tower]
betas: [0.8, 0.9]
decay: constant
grad_checkpoint: true
train: true
lora_parameters: {rank: 4, scale: 10.0, dropout: 0.0}
"""


@pytest.mark.parametrize("kind", ["json", "old names", "yaml"])
def test_a_config_file_has_what_the_command_line_has_not(capsys, arguments, tmp_path, kind):
    file = tmp_path / ("config.yaml" if kind == "yaml" else "config.json")
    if kind == "yaml":
        pytest.importorskip("yaml")
        file.write_text(YAML)
    else:
        names = OLD_NAMES if kind == "old names" else {}
        file.write_text(json.dumps({names.get(name, name): v for name, v in CONFIG.items()}))
    flag = "--recipe" if kind == "old names" else "--config"
    code, _, _ = run(capsys, "train", *arguments, flag, file, "--iters", 2)
    assert code == EXIT_OK
    lines = metrics(tmp_path / "out")
    for line, decoder in zip(lines, (0.0005, 0.001), strict=True):
        assert line["learning_rates"] == pytest.approx({"connector": 0.004, "decoder": decoder})
    # What was done is recorded under the same names.
    recorded = json.loads((tmp_path / "out" / "training" / "training_config.json").read_text())
    assert recorded["iters"] == 2
    assert recorded["freeze"] == ["vision_tower"]
    assert recorded["learning_rate"] == 0.001


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"learning_rat": 1}', "'learning_rat' is no option of train"),
        ('{"iters": "many"}', "iters is 'many'; expected a whole number"),
        ('{"iters": []}', "iters is []; expected a whole number"),
        ('{"iters": true}', "iters is True"),
        ('{"decay": "slow"}', "decay is 'slow'; expected one of cosine, linear, constant"),
        ('{"compile": 1}', "compile is 1; expected true or false"),
        ('{"compile": []}', "compile is []"),
        ('{"lora_keys": []}', "lora_keys is []"),
        ('{"betas": []}', "betas is []; expected a list of 2"),
        ('{"data": []}', "data cannot be []"),
        ('{"learning_rate": "fast"}', "learning_rate cannot be 'fast'"),
        ('{"image_cache": "1 parsec"}', "image_cache cannot be '1 parsec'"),
        ('{"batch_size": 1000000000000}', "batch_size is 1000000000000; expected a whole number"),
        ('{"rank": ' + "9" * 5000 + "}", "an integer of 5000 digits"),
        ("[" * 5000, "nested deeper"),
        ("[]", "is no config; expected an object"),
        ("{", "is no JSON"),
    ],
)
def test_a_config_file_with_mistakes_is_refused(capsys, arguments, tmp_path, content, message):
    file = tmp_path / "config.json"
    file.write_text(content)
    line = refused(capsys, *arguments, "--config", file)
    assert line.startswith(f"error: {file}")
    assert message in line
    assert len(line) < 400


def test_yaml_aliases_are_refused(capsys, arguments, tmp_path):
    pytest.importorskip("yaml")
    (tmp_path / "config.yaml").write_text("betas: &b [0.9, 0.9]\nfreeze: *b\n")
    line = refused(capsys, *arguments, "--config", tmp_path / "config.yaml")
    assert "aliases (*name) are not supported" in line


HABITS = {
    "mlx-lm": [
        "--train", "--mask-prompt", "--iters", 2, "--steps-per-eval", 1, "--steps-per-report", 1,
        "--grad-accumulation-steps", 1, "--max-seq-length", 400, "--grad-checkpoint",
        "--fine-tune-type", "lora", "--num-layers", -1, "--save-every", 100, "--seed", 1,
        "--learning-rate", "1e-5",
    ],
    "earlier versions": [
        "--steps", 2, "--validate-every", 1, "--report-every", 1, "--accumulate", 1,
        "--max-length", 400, "--gradient-checkpointing", "--adapter", "lora",
        "--adapter-parts", "decoder", "--adapter-layers", 4, "--text-share", 0.5,
    ],
}  # fmt: skip


@pytest.mark.parametrize("habit", HABITS)
def test_flags_as_users_know_them(capsys, golden_folder, data, tmp_path, habit):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("red", "green", "blue"):
        shutil.copy(data.parent / f"{name}.png", folder)
    examples = "\n".join((data.parent / f"{name}.jsonl").read_text() for name in ("colors", "sums"))
    (folder / "train.jsonl").write_text(examples)
    (folder / "valid.jsonl").write_text(examples)
    out = tmp_path / "out"
    output = ["--adapter-path" if habit == "mlx-lm" else "--output", out]
    code, stdout, _ = run(
        capsys, "train", "--model", golden_folder / "tiny", "--data", folder, *output,
        "--batch-size", 2, "--dtype", "float32", "--max-crops", 1, *HABITS[habit],
    )  # fmt: skip
    assert code == EXIT_OK
    lines = stdout.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("iteration 1/2: loss ")
    assert "validation loss " in lines[0]
    assert lines[-1] == f"written: {out}"
    assert (out / "adapters.safetensors").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--iters", 3, "--epochs", 1],
            "give the length of the training as either iters or epochs",
        ),
        (["--epochs", 0], "epochs is 0.0"),
        (["--iters", 3, "--config", "none.json"], "has no none.json"),
        (["--iters", 3, "--data", "none.json"], "none.json cannot be read"),
        (["--iters", 3, "--text-fraction", 0], "--text-fraction is 0.0, but there are examples"),
        (["--iters", 3, "--max-seq-length", 10], "tokens"),
        (["--iters", 3, "--resume"], "has no training run to resume; leave out --resume"),
        (["--iters", 3, "--fine-tune-type", "lora", "--lora-keys", "x"], "--lora-keys: x names no"),
        (
            ["--iters", 3, "--freeze", "vision_tower", "connector", "decoder"],
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
    assert not (tmp_path / "out").exists()


def test_a_quantized_model_is_not_trained_itself(capsys, arguments, golden_folder):
    line = refused(capsys, *arguments, "--iters", 3, "--model", golden_folder / "tiny-mlx-4bit")
    assert "quantized weights cannot be trained; train an adapter" in line


def test_an_output_that_exists_is_refused(capsys, arguments, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("")
    line = refused(capsys, *arguments, "--iters", 3)
    assert line.endswith("out exists already; give another path")


def test_iterations_follow_from_epochs(capsys, arguments, tmp_path):
    # Seven examples are two batches of four, so two epochs in iterations of two batches are two.
    code, _, _ = run(capsys, "train", *arguments, "--epochs", 2, "--grad-accumulation-steps", 2)
    assert code == EXIT_OK
    assert [line["step"] for line in metrics(tmp_path / "out")] == [1, 2]


def test_batches_of_one_source_come_first(capsys, arguments, tmp_path):
    """Batches of one source have images in all examples or in none; mixed ones in some."""
    code, _, _ = run(capsys, "train", *arguments, "--iters", 6, "--single-source-iters", 4)
    assert code == EXIT_OK
    images = [
        round(line["images_per_second"] * line["seconds"]) for line in metrics(tmp_path / "out")
    ]
    assert set(images[:4]) == {0, 4}
    assert not set(images[4:]) & {0, 4}


def test_a_resumed_run_keeps_its_options(capsys, arguments, tmp_path):
    flags = ["--iters", 3, "--save-every", 1]
    assert run(capsys, "train", *arguments, *flags)[0] == EXIT_OK
    out = tmp_path / "out"
    line = refused(capsys, "--output", out, "--resume")
    assert "has done 3 iterations; give more --iters to lengthen it" in line
    before = metrics(out)
    # As if it had been killed before the result was written.
    for name in ("config.json", "model.safetensors", "model.safetensors.index.json"):
        (out / name).unlink()
    line = refused(capsys, "--output", out, "--resume", "--learning-rate", "2e-3")
    assert "--learning-rate was 0.001 when this run began, and cannot be 0.002 now" in line
    code, stdout, _ = run(capsys, "train", "--output", out, "--resume", "--keep", 1, "--quiet")
    assert (code, stdout) == (EXIT_OK, f"written: {out}\n")
    assert [line["loss"] for line in metrics(out)] == [line["loss"] for line in before]
    # A finished run is lengthened.
    code, _, _ = run(capsys, "train", "--output", out, "--resume", "--iters", 4)
    assert code == EXIT_OK
    assert [line["step"] for line in metrics(out)] == [1, 2, 3, 4]


def test_a_chart_is_drawn_on_request(capsys, arguments, tmp_path, data):
    pytest.importorskip("matplotlib")
    code, _, _ = run(
        capsys, "train", *arguments, "--iters", 3, "--chart", "--validation", data,
        "--steps-per-eval", 2,
    )  # fmt: skip
    assert code == EXIT_OK
    assert (tmp_path / "out" / "training" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_matplotlib_is_named_before_the_run(capsys, arguments, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    line = refused(capsys, *arguments, "--iters", 3, "--chart")
    assert "a chart needs matplotlib: pip install 'jvlm-mlx[plot]'" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("subcommand", ["train", "fuse"])
def test_the_modules_run(subcommand):
    process = subprocess.run(
        [sys.executable, "-m", f"jvlm_mlx.{subcommand}", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == EXIT_OK
    assert f"usage: python -m jvlm_mlx.{subcommand}" in process.stdout


def start(arguments, **environment):
    command = [sys.executable, "-m", "jvlm_mlx.train", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | environment,
    )  # fmt: skip


def test_ctrl_c_keeps_what_was_learned(capsys, arguments, tmp_path):
    out = tmp_path / "out"
    flags = ["--iters", 400, "--decay", "constant", "--warmup-iters", 0, "--quiet"]
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
        f"stopped after iteration {done}; to resume:"
        f" python -m jvlm_mlx.train --output {out} --resume\n"
    )
    # Nothing is left of it but what it says.
    assert [entry.name for entry in out.iterdir()] == ["training"]
    assert (out / "training" / f"step-{done:08}" / "config.json").is_file()


def report(**changes):
    values = {
        "step": 3, "iters": 5, "loss": 1.2345, "validation_loss": 2.5, "gradient_norm": 1.0,
        "learning_rates": {"decoder": 1e-4, "connector": 2e-4}, "target_tokens": 3,
        "tokens_per_second": 3.0, "images_per_second": 1.0, "seconds": 1.0,
        "peak_memory": 1_500_000_000,
    }  # fmt: skip
    return StepReport(**values | changes)


@pytest.mark.parametrize("columns", ["80", "60"])
def test_a_terminal_gets_a_bar_and_lines_of_validation(capsys, monkeypatch, columns):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", columns)
    with TrainingBars(False) as bars:
        bars.show(ProgressEvent("training", 2, 5, "iteration"))
        bars.report(report())
        bars.show(ProgressEvent("training", 3, 5, "iteration"))
        bars._bar.refresh()
        out, shown = capsys.readouterr()
    assert out == ""
    assert "3/5" in shown
    assert "loss=1.234, memory=1.5 GB" in shown
    assert "iteration 3: validation loss 2.5000\n" in shown


def test_anything_else_gets_a_line_for_every_report(capsys):
    with TrainingBars(False) as bars:
        bars.show(ProgressEvent("training", 2, 5, "iteration"))
        bars.report(report())
        bars.report(report(step=4, validation_loss=None))
    out, err = capsys.readouterr()
    assert out == (
        "iteration 3/5: loss 1.2345, validation loss 2.5000, learning rate 0.0001/0.0002,"
        " 3 tokens/s, 1.5 GB\n"
        "iteration 4/5: loss 1.2345, learning rate 0.0001/0.0002, 3 tokens/s, 1.5 GB\n"
    )
    assert err == ""
    with TrainingBars(True) as bars:
        bars.report(report())
    assert capsys.readouterr() == ("", "")
