"""What a training run is asked for: values out of range, paths, what is said when it cannot be."""

import json
import os
import shlex
import shutil
from contextlib import contextmanager

import pytest

from jvlm_mlx import train as train_verb
from jvlm_mlx.cli.loss_chart import write_chart
from jvlm_mlx.cli.main import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_OK
from jvlm_mlx.cli.training_options import DEFAULTS, read_recipe
from jvlm_mlx.errors import TrainingError
from jvlm_mlx.training.metrics import MetricsFile, read_metrics
from tests.helpers.training_case import refusal_of_training as refused
from tests.helpers.training_case import run_arguments, run_command, write_rows


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture
def arguments(golden_folder, rows, tmp_path):
    return run_arguments(golden_folder / "tiny", rows, tmp_path / "out")


def run(capsys, *arguments):
    return run_command(capsys, "train", *arguments)


def metrics(output):
    return read_metrics(output / "training" / "metrics.jsonl")


def recipe_file(folder, **values):
    file = folder / "recipe.json"
    file.write_text(json.dumps(values))
    return file


@pytest.fixture
def interrupt(monkeypatch):
    """Makes the next run stop after a number of steps, as Ctrl-C does."""

    def interrupt(steps):
        @contextmanager
        def interrupted():
            done = []
            yield lambda: done.append(None) or len(done) == steps

        monkeypatch.setattr(train_verb, "interrupted_once", interrupted)

    return interrupt


def test_an_option_without_a_value_has_its_default(tmp_path):
    empty = dict.fromkeys(DEFAULTS)
    assert read_recipe(recipe_file(tmp_path, **empty)) == DEFAULTS


@pytest.mark.parametrize("name", ["steps", "adapter_keys", "rank", "compile", "data"])
def test_a_list_of_nothing_is_refused_where_no_list_is_expected(name, tmp_path, capsys, arguments):
    file = recipe_file(tmp_path, **{name: []})
    line = refused(capsys, *arguments, "--recipe", file)
    assert line == f"error: {file}: {name} cannot be []"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("betas", "betas are two numbers; found 0"),
        ("adapter_parts", "adapter parts (none): give some of"),
    ],
)
def test_a_list_of_nothing_may_be_too_short(name, message, tmp_path, capsys, arguments):
    file = recipe_file(tmp_path, adapter="lora", steps=1, **{name: []})
    assert message in refused(capsys, *arguments, "--recipe", file)
    assert read_recipe(recipe_file(tmp_path, freeze=[])) == {"freeze": []}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--learning-rate", "inf"], "learning rate inf must be above 0 and finite"),
        (
            ["--decoder-learning-rate", "nan"],
            "decoder: learning rate nan must be above 0 and finite",
        ),
        (["--weight-decay", "nan"], "weight_decay nan must be at least 0 and finite"),
        (["--weight-decay", "inf"], "weight_decay inf must be at least 0 and finite"),
        (["--eps", "inf"], "eps inf must be above 0 and finite"),
        (["--max-grad-norm", "nan"], "max_grad_norm nan must be above 0 and finite"),
        (["--betas", "nan", "0.9"], "must be at least 0 and below 1"),
        (["--floor", "nan"], "floor nan must be between 0 and 1"),
        (["--adapter", "lora", "--scale", "nan"], "adapter scale nan must be finite"),
        (["--adapter", "lora", "--dropout", "nan"], "adapter dropout nan must be at least 0"),
        (["--image-cache", "nan"], "image_cache nan must be at least 0 and finite"),
        (["--image-cache", "1e300"], "image_cache 1e+300 must be at least 0 and finite"),
        (["--image-cache", "-1"], "image_cache -1.0 must be at least 0 and finite"),
        (["--text-share", "nan"], "text_share nan must be between 0 and 1"),
        (["--seed", "99999999999999999999999"], "must be at least 0 and below 2**64"),
        (["--seed", "-1"], "seed -1 must be at least 0 and below 2**64"),
        (["--max-length", "0"], "max_length 0 must be at least 1"),
        (["--steps", "-3"], "steps -3 must be at least 1"),
        (["--steps", "0"], "steps 0 must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(flags, message, capsys, arguments, tmp_path):
    assert message in refused(capsys, *arguments, "--steps", 1, *flags)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("epochs", ["inf", "nan", "-1"])
def test_epochs_out_of_range_are_refused(epochs, capsys, arguments):
    line = refused(capsys, *arguments, "--epochs", epochs)
    assert f"epochs {float(epochs)} must be above 0 and finite" in line


def test_epochs_that_cannot_be_counted_are_refused(capsys, arguments):
    assert refused(capsys, *arguments, "--epochs", "1e308") == "error: epochs 1e+308 are too many"


def test_all_rows_of_an_epoch_are_learned_where_a_step_takes_several_batches(
    capsys, arguments, tmp_path
):
    # Seven rows are three batches of three, so three epochs are four and a half steps of two.
    code, _, _ = run(capsys, *arguments, "--epochs", 3, "--accumulate", 2, "--batch-size", 3)
    assert code == EXIT_OK
    assert [line["step"] for line in metrics(tmp_path / "out")] == [1, 2, 3, 4, 5]


def test_weights_that_are_no_numbers_are_not_written(capsys, arguments, tmp_path):
    # The loss is that of the weights before the last step.
    line = refused(capsys, *arguments, "--steps", 1, "--learning-rate", "3e38",
                   "--weight-decay", "1e30", "--warmup-steps", 0)  # fmt: skip
    assert line.startswith("error: step 1: ")
    assert "is not finite any more" in line
    assert "nothing is written" in line
    assert "checkpoint" not in line
    out = tmp_path / "out"
    assert [entry.name for entry in out.iterdir()] == ["training"]
    assert not list((out / "training").glob("step*"))
    # There is nothing to go on from.
    line = refused(capsys, *arguments, "--steps", 1)
    assert line == f"error: {out} exists already; remove it, or give another path"


def test_what_is_left_of_a_broken_run_is_named(capsys, arguments, tmp_path):
    flags = ["--steps", 3, "--save-every", 1, "--warmup-steps", 1, "--max-grad-norm", 0]
    line = refused(capsys, *arguments, *flags, "--learning-rate", "1e30")
    assert "the loss is" in line or "is not finite" in line
    out = tmp_path / "out"
    saved = sorted((out / "training").glob("step-*"))
    assert saved
    assert line.endswith(f"; what was learned before is in {saved[-1]}")
    line = refused(capsys, *arguments, *flags)
    assert line == f"error: {out} exists already; give another path, or --resume to go on"


def test_ctrl_c_before_the_first_line_of_metrics_with_a_chart(
    capsys, arguments, interrupt, tmp_path
):
    pytest.importorskip("matplotlib")
    interrupt(1)
    code, out, err = run(capsys, *arguments, "--steps", 9, "--report-every", 5, "--chart")
    assert (code, out) == (EXIT_INTERRUPTED, "")
    assert err.startswith("stopped after step 1, to go on with: ")
    assert not (tmp_path / "out" / "training" / "loss.png").exists()


def test_where_to_go_on_is_said_before_the_chart_is_drawn(
    capsys, arguments, interrupt, monkeypatch
):
    pytest.importorskip("matplotlib")

    def full(*_):
        raise TrainingError("loss.png cannot be written: No space left on device")

    interrupt(1)
    monkeypatch.setattr(train_verb, "write_chart", full)
    _, _, err = run(capsys, *arguments, "--steps", 9, "--chart")
    assert err.startswith("stopped after step 1, to go on with: ")
    assert err.endswith("error: loss.png cannot be written: No space left on device\n")


def test_a_chart_of_nothing_is_not_drawn(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    write_chart(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()


@pytest.fixture
def begun(capsys, arguments, golden_folder, interrupt, monkeypatch, rows, tmp_path):
    """A folder where a run was begun with relative paths, and stopped after its first step."""
    folder = tmp_path / "with 'quotes'"
    folder.mkdir()
    shutil.copytree(golden_folder / "tiny", folder / "tiny")
    shutil.copytree(rows.parent, folder / "rows")
    monkeypatch.chdir(folder)
    relative = {"--model": "tiny", "--data": "rows/mixture.json", "--output": "out dir"}
    flags = [*arguments]
    for flag, value in relative.items():
        flags[flags.index(flag) + 1] = value
    interrupt(1)
    code, _, err = run(capsys, *flags, "--steps", 2, "--validation", "rows/sums.jsonl")
    assert code == EXIT_INTERRUPTED
    assert shlex.split(err.split("to go on with: ")[1])[-3:] == ["--output", "out dir", "--resume"]
    interrupt(9)
    return folder


def test_a_run_goes_on_from_any_folder(begun, capsys, monkeypatch):
    recipe = json.loads((begun / "out dir" / "training" / "recipe.json").read_text())
    assert [recipe[name] for name in ("model", "data", "validation")] == [
        str(begun / "tiny"), str(begun / "rows" / "mixture.json"), str(begun / "rows/sums.jsonl")
    ]  # fmt: skip
    monkeypatch.chdir(begun / "rows")
    code, _, err = run(
        capsys, "--output", "../out dir", "--resume",
        "--data", "mixture.json", "--model", "../tiny",
    )  # fmt: skip
    assert code == EXIT_OK, err
    assert len(metrics(begun / "out dir")) == 2


def test_another_file_is_another_run(begun, capsys, monkeypatch):
    monkeypatch.chdir(begun / "rows")
    line = refused(capsys, "--output", "../out dir", "--resume", "--data", "rows/mixture.json")
    assert "data was" in line
    assert "cannot be rows/mixture.json now" in line
    line = refused(capsys, "--output", "../out dir", "--resume", "--model", "owner/tiny")
    assert "cannot be owner/tiny now" in line


def test_a_recipe_with_relative_paths_goes_on_from_its_folder(begun, capsys):
    """As earlier versions recorded it."""
    file = begun / "out dir" / "training" / "recipe.json"
    recipe = json.loads(file.read_text())
    recipe |= {"model": "tiny", "data": "rows/mixture.json", "validation": "rows/sums.jsonl"}
    file.write_text(json.dumps(recipe))
    code, _, err = run(
        capsys, "--output", "out dir", "--resume", "--data", begun / "rows" / "mixture.json"
    )
    assert code == EXIT_OK, err


def test_names_that_are_no_paths_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    for name in ("demo", "owner/name"):
        train_verb._record(tmp_path / "out", DEFAULTS | {"model": name})
        recipe = json.loads((tmp_path / "out" / "training" / "recipe.json").read_text())
        assert recipe == {"model": name}
    train_verb._record(tmp_path / "out", DEFAULTS | {"model": "./demo"})
    recipe = json.loads((tmp_path / "out" / "training" / "recipe.json").read_text())
    assert recipe == {"model": os.fspath(tmp_path / "demo")}


@pytest.mark.parametrize("flag", ["--data", "--validation"])
def test_a_missing_file_of_rows_has_a_line_of_its_own(flag, capsys, arguments):
    line = refused(capsys, *arguments, "--steps", 1, flag, "nope.jsonl")
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
    code, _, said = run(capsys, *arguments, "--steps", 1, option, path)
    assert code == EXIT_ERROR
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert "Traceback" not in said


def test_a_mixture_with_a_path_that_cannot_be_looked_up(arguments, capsys, tmp_path):
    source = {"name": "a", "path": "~nobody-here/x.jsonl", "kind": "text", "weight": 1}
    (tmp_path / "mixture.json").write_text(json.dumps({"sources": [source]}))
    code, _, said = run(capsys, *arguments, "--steps", 1, "--data", tmp_path / "mixture.json")
    assert code == EXIT_ERROR
    assert said.startswith("error: ~nobody-here/x.jsonl cannot be looked up")
