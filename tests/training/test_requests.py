"""What a training run is asked for: values out of range, paths, what is said when it cannot be."""

import importlib
import json
import os
import shlex
import shutil
from contextlib import contextmanager

import pytest

from jvlm_mlx.cli.charts import write_chart
from jvlm_mlx.cli.main import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_OK
from jvlm_mlx.errors import TrainingError
from jvlm_mlx.training import TrainingConfig
from jvlm_mlx.training.reports import MetricsFile, read_metrics
from tests.helpers.training_case import refusal_of_training as refused
from tests.helpers.training_case import run_arguments, run_command, write_examples

# The package has a function of this name.
train_module = importlib.import_module("jvlm_mlx.train")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_examples(tmp_path_factory.mktemp("examples"))


@pytest.fixture
def arguments(golden_folder, data, tmp_path):
    return run_arguments(golden_folder / "tiny", data, tmp_path / "out")


def run(capsys, *arguments):
    return run_command(capsys, "train", *arguments)


def metrics(output):
    return read_metrics(output / "training" / "metrics.jsonl")


@pytest.fixture
def interrupt(monkeypatch):
    """Makes the next run stop after a number of steps, as Ctrl-C does."""

    def interrupt(steps):
        @contextmanager
        def interrupted():
            done = []
            yield lambda: done.append(None) or len(done) == steps

        monkeypatch.setattr(train_module, "interrupted_once", interrupted)

    return interrupt


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--learning-rate", "inf"], "--learning-rate is inf; expected a finite number above 0"),
        (["--betas", "0.9"], "betas is [0.9]; expected a list of 2"),
        (["--batch-size", "1000000000000"], "--batch-size is 1000000000000; expected a whole"),
        (["--bucket-batches", "1000000000000"], "--bucket-batches is 1000000000000"),
        (["--image-cache", "1e300"], "1e300"),
        (["--text-fraction", "nan"], "--text-fraction is nan"),
        (["--lora-modules"], "--lora-modules is []; expected a list of 1 or more"),
        (["--iters", "0"], "iters is 0; expected a whole number from 1"),
    ],
)
def test_options_out_of_range_are_refused(flags, message, capsys, arguments, tmp_path):
    try:
        code, _, line = run(capsys, *arguments, "--iters", 1, *flags)
    except SystemExit as ended:  # argparse, of a value that is none
        code, line = ended.code, capsys.readouterr().err.splitlines()[-1]
    assert code in (EXIT_ERROR, 2)
    assert message in line
    assert not (tmp_path / "out").exists()


def test_epochs_that_cannot_be_counted_are_refused(capsys, arguments):
    line = refused(capsys, *arguments, "--epochs", "1e308")
    assert line == "error: --epochs is 1e+308, which is too many"


def test_all_examples_of_an_epoch_are_learned_where_an_iteration_takes_several_batches(
    capsys, arguments, tmp_path
):
    # Seven examples are four batches of two, so 1.75 epochs are three and a half iterations.
    code, _, _ = run(capsys, *arguments, "--epochs", 1.75, "--grad-accumulation-steps", 2,
                     "--batch-size", 2)  # fmt: skip
    assert code == EXIT_OK
    assert [line["step"] for line in metrics(tmp_path / "out")] == [1, 2, 3, 4]


def test_weights_that_are_not_finite_are_not_written(capsys, arguments, tmp_path):
    # The loss is that of the weights before the last step.
    line = refused(capsys, *arguments, "--iters", 1, "--learning-rate", "3e38",
                   "--weight-decay", "1e30", "--warmup-iters", 0, "--quiet")  # fmt: skip
    assert line.startswith("error: iteration 1: ")
    assert "is not finite any more" in line
    assert "nothing is written" in line
    assert "newest checkpoint" not in line
    out = tmp_path / "out"
    assert [entry.name for entry in out.iterdir()] == ["training"]
    assert not list((out / "training").glob("step*"))
    # There is nothing to resume from, and nothing that a new run could destroy.
    line = refused(capsys, *arguments, "--iters", 1, "--resume")
    assert line == (
        f"error: {out} has no checkpoint to resume from; leave out --resume to begin again"
    )
    (out / "mine").write_text("work")
    line = refused(capsys, *arguments, "--iters", 1)
    assert line == f"error: {out} exists already; give another path"
    (out / "mine").unlink()
    code, _, _ = run(capsys, *arguments, "--iters", 1)
    assert code == EXIT_OK
    assert [line["step"] for line in metrics(out)] == [1]


def test_leftovers_of_killed_runs_are_removed_by_any_later_run(capsys, arguments, tmp_path):
    """A checkpoint that was being written is not made again if others are due by then."""
    run(capsys, *arguments, "--iters", 1, "--save-every", 1)
    left = tmp_path / "out" / "training" / ".step-00000007.0123abcd.writing"
    left.mkdir()
    (left / "model.safetensors").write_text("half")
    left.with_name(f"{left.name}.lock").touch()
    left.with_name(".step-00000007.lock").touch()
    code, _, _ = run(capsys, *arguments, "--iters", 2, "--resume")
    assert code == EXIT_OK
    assert not [one.name for one in left.parent.iterdir() if one.name.startswith(".")]


def test_the_newest_checkpoint_of_a_broken_run_is_named(capsys, arguments, tmp_path):
    flags = ["--iters", 3, "--save-every", 1, "--warmup-iters", 1, "--max-grad-norm", 0, "--quiet"]
    line = refused(capsys, *arguments, *flags, "--learning-rate", "1e30")
    assert "the loss is" in line or "is not finite" in line
    out = tmp_path / "out"
    saved = sorted((out / "training").glob("step-*"))
    assert saved
    assert line.endswith(f"; the newest checkpoint is {saved[-1]}")
    line = refused(capsys, *arguments, *flags)
    assert line == f"error: {out} exists already; give another path, or --resume to continue it"


def test_ctrl_c_before_the_first_line_of_metrics_with_a_chart(
    capsys, arguments, interrupt, tmp_path
):
    pytest.importorskip("matplotlib")
    interrupt(1)
    code, out, err = run(capsys, *arguments, "--iters", 9, "--steps-per-report", 5, "--chart")
    assert (code, out) == (EXIT_INTERRUPTED, "")
    assert err.startswith("stopped after iteration 1; to resume: ")
    assert not (tmp_path / "out" / "training" / "loss.png").exists()


def test_how_to_resume_is_said_before_the_chart_is_drawn(capsys, arguments, interrupt, monkeypatch):
    pytest.importorskip("matplotlib")

    def full(*_):
        raise TrainingError("loss.png cannot be written: No space left on device")

    interrupt(1)
    monkeypatch.setattr(train_module, "write_chart", full)
    _, _, err = run(capsys, *arguments, "--iters", 9, "--chart")
    assert err.startswith("stopped after iteration 1; to resume: ")
    assert err.endswith("error: loss.png cannot be written: No space left on device\n")


def test_a_chart_of_nothing_is_not_drawn(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    write_chart({"run": tmp_path / "metrics.jsonl"}, tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()


@pytest.fixture
def begun(capsys, arguments, golden_folder, interrupt, monkeypatch, data, tmp_path):
    """A folder where a run was begun with relative paths, and stopped after its first step."""
    folder = tmp_path / "with 'quotes'"
    folder.mkdir()
    shutil.copytree(golden_folder / "tiny", folder / "tiny")
    shutil.copytree(data.parent, folder / "examples")
    monkeypatch.chdir(folder)
    relative = {"--model": "tiny", "--data": "examples/mixture.json", "--output": "out dir"}
    flags = [*arguments]
    for flag, value in relative.items():
        flags[flags.index(flag) + 1] = value
    interrupt(1)
    code, _, err = run(capsys, *flags, "--iters", 2, "--validation", "examples/sums.jsonl")
    assert code == EXIT_INTERRUPTED
    assert shlex.split(err.split("to resume: ")[1])[-3:] == ["--output", "out dir", "--resume"]
    interrupt(9)
    return folder


def test_a_run_resumes_from_any_folder(begun, capsys, monkeypatch):
    record = json.loads((begun / "out dir" / "training" / "training_config.json").read_text())
    assert [record[name] for name in ("model", "data", "validation")] == [
        str(begun / name) for name in ("tiny", "examples/mixture.json", "examples/sums.jsonl")
    ]
    monkeypatch.chdir(begun / "examples")
    code, _, err = run(
        capsys, "--output", "../out dir", "--resume",
        "--data", "mixture.json", "--model", "../tiny",
    )  # fmt: skip
    assert code == EXIT_OK, err
    assert len(metrics(begun / "out dir")) == 2


def test_another_file_is_another_run(begun, capsys, monkeypatch):
    monkeypatch.chdir(begun / "examples")
    line = refused(capsys, "--output", "../out dir", "--resume", "--data", "examples/mixture.json")
    assert "data was" in line
    assert "cannot be 'examples/mixture.json' now" in line
    line = refused(capsys, "--output", "../out dir", "--resume", "--model", "owner/tiny")
    assert "cannot be 'owner/tiny' now" in line


def test_a_record_with_relative_paths_resumes_from_its_folder(begun, capsys):
    file = begun / "out dir" / "training" / "training_config.json"
    record = json.loads(file.read_text())
    record |= {
        "model": "tiny",
        "data": "examples/mixture.json",
        "validation": "examples/sums.jsonl",
    }
    file.write_text(json.dumps(record))
    code, _, err = run(
        capsys, "--output", "out dir", "--resume", "--data", begun / "examples" / "mixture.json"
    )
    assert code == EXIT_OK, err


def test_names_that_are_no_paths_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    for name in ("demo", "owner/name"):
        assert train_module._record({"model": name}, TrainingConfig()) == {"model": name}
    record = train_module._record({"model": "./demo"}, TrainingConfig(iters=3))
    assert record == {"model": os.fspath(tmp_path / "demo"), "iters": 3}


@pytest.mark.parametrize("flag", ["--data", "--validation"])
def test_a_missing_file_of_examples_has_a_line_of_its_own(flag, capsys, arguments):
    line = refused(capsys, *arguments, "--iters", 1, flag, "nope.jsonl")
    assert line == "error: nope.jsonl cannot be read: No such file or directory"


def test_metrics_that_cannot_be_written_are_one_line(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(TrainingError, match=r"metrics\.jsonl cannot be written: Is a directory"):
        file.write({"step": 1})


@pytest.mark.parametrize("option", ["--data", "--output", "--model", "--validation"])
@pytest.mark.parametrize("path", ["~nobody-here/x", "x" * 300 + ".jsonl"])
def test_paths_that_cannot_be_looked_up(arguments, capsys, option, path):
    code, _, said = run(capsys, *arguments, "--iters", 1, option, path)
    assert code == EXIT_ERROR
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert "Traceback" not in said


def test_a_mixture_with_a_path_that_cannot_be_looked_up(arguments, capsys, tmp_path):
    source = {"name": "a", "path": "~nobody-here/x.jsonl", "kind": "text", "weight": 1}
    (tmp_path / "mixture.json").write_text(json.dumps({"sources": [source]}))
    code, _, said = run(capsys, *arguments, "--iters", 1, "--data", tmp_path / "mixture.json")
    assert code == EXIT_ERROR
    assert said.startswith("error: ~nobody-here/x.jsonl cannot be looked up")
