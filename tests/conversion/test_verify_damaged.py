"""`verify` of what gives no numbers, and of what is asked for in vain."""

import dataclasses
import json
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jvlm_mlx.cli.conversion_report import verification_json, verification_text
from jvlm_mlx.cli.main import EXIT_ERROR, EXIT_OK, run_subcommand
from jvlm_mlx.conversion import verification as verify_module
from jvlm_mlx.conversion.converter import convert
from jvlm_mlx.conversion.outputs import Observation, agreement
from jvlm_mlx.conversion.verification import Bounds, Verification, update_card, verify
from jvlm_mlx.conversion.weight_error import TensorError
from jvlm_mlx.convert import EXIT_VIOLATION
from jvlm_mlx.errors import ConversionError, RequestError
from tests.helpers.converting import bytes_of

QUICK = ["--prompts", "a", "--max-tokens", "2"]


def run(capsys, *arguments):
    code = run_subcommand("convert", [str(argument) for argument in arguments])
    output = capsys.readouterr()
    return code, output.out, output.err


@pytest.fixture(scope="module")
def broken(grouped, tmp_path_factory):
    """A conversion that answers with NaN alone."""
    folder = tmp_path_factory.mktemp("broken") / "out"
    convert(grouped, folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["decoder.norm.weight"][:] = np.nan
    save_file(tensors, file)
    return folder


@pytest.fixture(scope="module")
def verification(grouped, broken):
    return verify(grouped, broken, prompts=["a"], max_tokens=2)


def test_answers_that_are_no_numbers_stay_so(verification):
    assert np.isnan(verification.kl_mean)
    assert np.isnan(verification.answers[0].kl_max)
    assert verification.top1 == 0
    assert np.isnan(verification.weight_errors()["decoder"])
    text = verification_text(verification)
    assert text.count("nan %") == 2
    assert "decoder.norm.weight" in text


def test_one_step_without_numbers_spoils_the_answer():
    p = np.log([0.6, 0.3, 0.1])
    nothing = np.full(3, np.nan)
    features = np.array([[1.0, 0.0], [0.0, 2.0]])
    expected = Observation((0, 0), np.array([p, p]), features)
    found = Observation((0, 0), np.array([p, nothing]), np.array([[1.0, 0.0], [np.nan, 1.0]]))
    result = agreement("one", expected, found)
    assert np.isnan([result.kl_mean, result.kl_max]).all()
    assert np.isnan([result.feature_cosine, result.feature_cosine_min]).all()
    # The argmax of values that are no numbers is no choice.
    assert (result.top1, result.first_divergence) == (0.5, 1)


@pytest.mark.parametrize(
    ("bounds", "violation"),
    [
        ({"max_weight_error": 9.0}, "weight error of decoder is nan, above 9"),
        ({"max_kl": 9.0}, "KL divergence is nan, above 9"),
        ({"min_top1": 0.1}, "top-1 agreement is 0, below 0.1"),
    ],
)
def test_what_is_no_number_holds_no_bound(verification, bounds, violation):
    found = dataclasses.replace(verification, bounds=Bounds(**bounds)).violations()
    assert found == [violation]


@pytest.mark.parametrize("order", [1, -1])
def test_the_worst_weights_are_those_without_numbers(order):
    errors = [
        TensorError("vision_tower.a", "tower", None, 8.0, 9.0),
        TensorError("decoder.b", "decoder", None, 1.0, 9.0),
        TensorError("decoder.c", "decoder", None, np.nan, 9.0),
        TensorError("lm_head.d", "head", None, 7.0, 9.0),
    ][::order]
    result = Verification("a", "b", tuple(errors), (), Bounds(max_weight_error=0.99))
    assert result.violations() == ["weight error of decoder is nan, above 0.99"]
    (line,) = (one for one in verification_text(result).splitlines() if one.startswith("decoder"))
    assert line.split()[-1] == "decoder.c"


def test_a_bound_that_is_no_number_is_refused():
    for name in ("max_weight_error", "max_kl", "min_top1", "min_cosine"):
        with pytest.raises(RequestError, match=f"{name} is nan; it must"):
            Bounds(**{name: float("nan")})


def test_json_has_null_for_what_is_no_number(verification):
    content = json.loads(json.dumps(verification_json(verification), allow_nan=False))
    assert content["kl_mean"] is None
    assert content["weight_error"]["decoder"] is None
    assert content["weight_error"]["tower"] == 0
    assert content["answers"][0]["kl_max"] is None
    by_path = {tensor["path"]: tensor["error"] for tensor in content["tensors"]}
    assert by_path["decoder.norm.weight"] is None


def test_a_card_takes_no_quality_that_is_no_number(verification, broken):
    before = bytes_of(broken)
    with pytest.raises(ConversionError, match="are no numbers, so its card is left as it is"):
        update_card(verification)
    # Of a tower that is broken, while answers to texts are not.
    answer = dataclasses.replace(verification.answers[0], kl_mean=0.1, feature_cosine=np.nan)
    with pytest.raises(ConversionError, match="are no numbers"):
        update_card(dataclasses.replace(verification, answers=(answer,)))
    assert bytes_of(broken) == before


def test_the_exit_code_says_so(grouped, broken, capsys):
    code, out, error = run(
        capsys, "verify", grouped, broken, *QUICK, "--max-kl", 0.01, "--max-weight-error", 0.01,
        "--json",
    )  # fmt: skip
    assert code == EXIT_VIOLATION
    assert json.loads(out)["kl_mean"] is None
    assert error.splitlines() == [
        "bound exceeded: weight error of decoder is nan, above 0.01",
        "bound exceeded: KL divergence is nan, above 0.01",
    ]
    # Also where the card cannot be written for it.
    code, _, error = run(capsys, "verify", grouped, broken, *QUICK, "--max-kl", 1, "--update-card")
    assert code == EXIT_ERROR
    assert [line.partition(":")[0] for line in error.splitlines()] == ["bound exceeded", "error"]
    code, _, error = run(capsys, "verify", grouped, broken, *QUICK, "--max-kl", "nan")
    assert code == EXIT_ERROR
    assert "--max-kl is nan" in error


@pytest.fixture
def nothing_is_measured(monkeypatch):
    monkeypatch.setattr(verify_module, "compare_weights", None)
    monkeypatch.setattr(verify_module, "load", None)


@pytest.fixture(scope="module")
def intact(grouped, tmp_path_factory):
    folder = tmp_path_factory.mktemp("intact") / "out"
    convert(grouped, folder)
    return folder


@pytest.mark.usefixtures("nothing_is_measured")
def test_a_bound_on_images_needs_one(grouped, intact):
    with pytest.raises(RequestError, match="no question has one: add images"):
        verify(grouped, intact, prompts=["a"], bounds=Bounds(min_cosine=0.9))


def test_built_in_questions_have_images(grouped, intact):
    result = verify(grouped, intact, max_tokens=1, max_crops=1, bounds=Bounds(min_cosine=0.9))
    assert result.violations() == []


@pytest.mark.usefixtures("nothing_is_measured")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--update-card", "--weights-only"], "do not leave out the questions"),
        (["--plot", "nowhere/plot.png"], "nowhere/plot.png cannot be written: No such file"),
        (["--plot", "file/plot.png"], "file/plot.png cannot be written: Not a directory"),
        (["--plot", f"{'long' * 80}.png"], "cannot be looked up: File name too long"),
        (["--plot", "folder"], "folder cannot be written: Is a directory"),
        (["--plot", "plot.docx"], "plot.docx cannot be written: no plot is a .docx; give a .png"),
    ],
)
def test_what_cannot_be_written_is_refused_first(
    grouped, intact, tmp_path, monkeypatch, capsys, flags, message
):
    if "--plot" in flags:
        pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder").mkdir()
    code, out, error = run(capsys, "verify", grouped, intact, *flags)
    assert (code, out) == (EXIT_ERROR, "")
    (line,) = error.splitlines()
    assert message in line
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.usefixtures("nothing_is_measured")
def test_a_card_that_is_none_of_ours_is_refused_first(grouped, golden_folder, capsys):
    for converted, message in (
        (golden_folder / "tiny-mlx-4bit", "no local folder that jvlm convert wrote"),
        ("somebody/vlm", "no local folder that jvlm convert wrote"),
        ("demo", "demo comes with this package"),
    ):
        code, out, error = run(capsys, "verify", grouped, converted, "--update-card")
        assert (code, out) == (EXIT_ERROR, "")
        (line,) = error.splitlines()
        assert message in line


@pytest.mark.usefixtures("nothing_is_measured")
def test_a_plot_without_matplotlib_is_refused_first(grouped, intact, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, error = run(capsys, "verify", grouped, intact, "--plot", "plot.png")
    assert code == EXIT_ERROR
    assert "pip install 'jvlm-mlx[plot]'" in error


@pytest.mark.usefixtures("nothing_is_measured")
def test_folders_that_may_not_be_written_to_are_refused_first(
    grouped, intact, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("matplotlib")
    # Whoever runs this may be allowed to write anywhere.
    monkeypatch.setattr("os.access", lambda *_: False)
    for flags in (["--plot", tmp_path / "plot.png"], ["--update-card"]):
        code, _, error = run(capsys, "verify", grouped, intact, *flags)
        assert code == EXIT_ERROR
        assert "cannot be written: Permission denied" in error


def test_a_plot_and_a_card_that_can_be_written_are(grouped, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    convert(grouped, tmp_path / "out")
    flags = ["--plot", tmp_path / "plot.PNG", "--update-card", "--min-top1", 1]
    code, _, error = run(capsys, "verify", grouped, tmp_path / "out", *QUICK, *flags)
    assert (code, error) == (EXIT_OK, "")
    assert (tmp_path / "plot.PNG").is_file()
    assert "Measured quality" in (tmp_path / "out" / "README.md").read_text()
