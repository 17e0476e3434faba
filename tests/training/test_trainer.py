"""Whole runs: memorizing, resuming after an interruption, what is written."""

import json
import os
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import jvlm_mlx
from jvlm_mlx.errors import RequestError, TrainingError
from jvlm_mlx.files import output_lock
from jvlm_mlx.training.checkpoints import saved_steps, step_folder
from jvlm_mlx.training.data_loader import validation_loader
from jvlm_mlx.training.loss import prepare
from jvlm_mlx.training.optimizer import flat
from jvlm_mlx.training.reports import read_metrics
from tests.helpers.training_case import (
    COLORS,
    QUESTION,
    make_config,
    make_data,
    make_loader,
    make_trainer,
    write_examples,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_examples(tmp_path_factory.mktemp("examples"))


@pytest.fixture
def run(golden_folder, data):
    """Trains the small checkpoint, and returns the result."""

    def run(output, *, resume=False, stop_after=None, validates=False, **changes):
        done = []
        config = make_config(text_fraction=0.5, **changes)
        return jvlm_mlx.train(
            golden_folder / "tiny", data=data, output=output, config=config, resume=resume,
            validation=data if validates else None, progress=done.append,
            should_stop=lambda: sum(e.stage == "training" for e in done) - 1 == stop_after,
        )  # fmt: skip

    return run


def losses(output):
    return [line["loss"] for line in read_metrics(output / "training" / "metrics.jsonl")]


def test_all_options_have_defaults(golden_folder, data, tmp_path):
    tiny = golden_folder / "tiny"
    result = jvlm_mlx.train(tiny, data=data, output=tmp_path / "out", iters=1)
    assert len(losses(result.path)) == 1
    model, processor = jvlm_mlx.load(tiny, adapter_path=result.path)
    assert jvlm_mlx.generate(model, processor, QUESTION, max_tokens=1).generation_tokens == 1


def test_a_few_examples_are_memorized(run, data, tmp_path):
    output = tmp_path / "out"
    result = run(
        output,
        iters=40,
        batch_size=4,
        learning_rate=3e-3,
        warmup_iters=3,
        connector_learning_rate=6e-3,
        connector_warmup_iters=0,
        max_grad_norm=1.0,
        steps_per_report=20,
    )
    assert result.finished
    assert result.step == 40
    assert result.last.loss < 0.02
    model, processor = jvlm_mlx.load(output)
    for name in COLORS:
        answer = jvlm_mlx.generate(
            model, processor, QUESTION, data.parent / f"{name}.png", max_crops=1, max_tokens=8
        )
        assert answer.text.strip() == name
        assert answer.finish_reason == "stop"
    assert jvlm_mlx.generate(model, processor, "1 + 1?", max_tokens=8).text.strip() == "2"


def test_a_resumed_run_is_the_uninterrupted_one(run, tmp_path):
    changes = {
        "iters": 4, "batch_size": 2, "max_grad_norm": 1.0, "grad_accumulation_steps": 2,
        "decoder_decay": "cosine",
    }  # fmt: skip
    run(tmp_path / "whole", **changes)
    first = run(tmp_path / "parts", stop_after=2, **changes)
    assert not first.finished
    assert first.step == 2
    assert first.path == step_folder(tmp_path / "parts", 2)
    assert not (tmp_path / "parts" / "config.json").exists()
    second = run(tmp_path / "parts", resume=True, **changes)
    assert second.finished
    assert len(losses(tmp_path / "whole")) == 4
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    whole, parts = (
        mx.load(str(tmp_path / name / "model.safetensors")) for name in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    for path, array in whole.items():
        assert mx.array_equal(array, parts[path]), path


def test_bfloat16_resumes_with_float32_weights(run, tmp_path):
    changes = {"iters": 4, "dtype": "bfloat16"}
    run(tmp_path / "whole", **changes)
    run(tmp_path / "parts", stop_after=2, **changes)
    stored = mx.load(str(step_folder(tmp_path / "parts", 2) / "model.safetensors"))
    assert stored["lm_head.weight"].dtype == mx.float32
    run(tmp_path / "parts", resume=True, **changes)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    result = mx.load(str(tmp_path / "parts" / "model.safetensors"))
    assert {array.dtype for array in result.values()} == {mx.bfloat16}
    config = json.loads((tmp_path / "parts" / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"


def test_a_killed_run_resumes_from_its_checkpoint(run, tmp_path):
    """What it did after that is done, and reported, once more; half a line does no harm."""
    output = tmp_path / "out"
    run(output, iters=5, save_every=2, stop_after=3)
    metrics = output / "training" / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 4, "lo')
    shutil.rmtree(step_folder(output, 3))
    (output / "training" / "result").mkdir()  # of a run that was killed while it was put in place
    run(output, iters=5, save_every=2, resume=True)
    assert [line["step"] for line in read_metrics(metrics)] == [1, 2, 3, 4, 5]
    assert saved_steps(output) == [4, 5]
    assert sorted(entry.name for entry in (output / "training").iterdir()) == [
        "metrics.jsonl", "step-00000004", "step-00000005", "training_config.json",
    ]  # fmt: skip


def test_checkpoints_are_kept_by_number_and_load_like_any_other(run, tmp_path):
    output = tmp_path / "out"
    run(output, iters=5, save_every=1, keep=2)
    assert saved_steps(output) == [4, 5]
    for folder in (output, step_folder(output, 4)):
        model, processor = jvlm_mlx.load(folder)
        assert jvlm_mlx.generate(model, processor, "1 + 1?", max_tokens=2).text
    assert sorted(entry.name for entry in (output / "training").iterdir()) == [
        "metrics.jsonl", "step-00000004", "step-00000005", "training_config.json",
    ]  # fmt: skip
    # It can be converted like any other, too.
    jvlm_mlx.convert(output, tmp_path / "converted", dtype="bfloat16")


def test_metrics_say_what_happened(run, tmp_path):
    output = tmp_path / "out"
    run(
        output,
        iters=4,
        steps_per_report=3,
        steps_per_eval=2,
        validates=True,
        connector_learning_rate=8e-3,
        connector_warmup_iters=2,
        freeze=("vision_tower",),
    )
    lines = read_metrics(output / "training" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [2, 3, 4]
    assert [line["step"] for line in lines if "validation_loss" in line] == [2, 4]
    assert lines[0]["learning_rates"] == pytest.approx({"connector": 8e-3, "decoder": 1e-3})
    for line in lines:
        assert line["gradient_norm"] > 0
        assert line["tokens_per_second"] > line["images_per_second"] > 0
        assert line["peak_memory"] > 0
        assert line["target_tokens"] > 0


def test_validation_is_the_mean_over_all_examples(run, data, tmp_path):
    output = tmp_path / "out"
    run(output, iters=1, steps_per_eval=1, validates=True)
    (line,) = read_metrics(output / "training" / "metrics.jsonl")
    trainer, processor = make_trainer(output)
    loader = validation_loader(make_data(data, processor), make_config(batch_size=7))
    assert loader.num_batches == 1
    whole = trainer.loss([prepare(trainer.model, loader[0])])
    assert line["validation_loss"] == pytest.approx(whole, rel=1e-5)  # one batch instead of two


@pytest.mark.parametrize("frozen", ["vision_tower", "connector", "decoder"])
def test_a_frozen_module_stays_as_it_is(run, golden_folder, tmp_path, frozen):
    run(tmp_path / "out", iters=2, weight_decay=0.1, freeze=(frozen,))
    before = flat(jvlm_mlx.load(golden_folder / "tiny", dtype="float32")[0].parameters())
    after = flat(jvlm_mlx.load(tmp_path / "out")[0].parameters())
    owners = {"lm_head": "decoder"}
    for path, array in before.items():
        first = path.split(".")[0]
        is_frozen = owners.get(first, first) == frozen
        assert mx.array_equal(after[path], array).item() == is_frozen, path


def test_clipping_shortens_all_gradients_alike(golden_folder, data):
    changes = []
    for limit in (0.0, 0.1):
        # Without a past and with a huge eps, AdamW moves by the gradient itself.
        trainer, processor = make_trainer(
            golden_folder / "tiny", max_grad_norm=limit, eps=1e6, weight_decay=0.0,
            learning_rate=1e6,
        )  # fmt: skip
        before = trainer.parameters
        batch = make_loader(data, processor, text_fraction=0.5)[0]
        result = trainer.step([prepare(trainer.model, batch)], 0)
        changes.append(
            np.concatenate([
                np.array(trainer.parameters[path] - array).ravel() for path, array in before.items()
            ])
        )  # fmt: skip
    assert result.gradient_norm > 1
    # Differences of float32 weights.
    assert np.linalg.norm(changes[1]) == pytest.approx(0.1, rel=1e-3)
    np.testing.assert_allclose(changes[1], changes[0] * 0.1 / result.gradient_norm, atol=1e-6)


def test_a_loss_that_is_not_finite_ends_the_run_in_one_line(run, tmp_path):
    # Steps so long that float32 overflows.
    with pytest.raises(
        TrainingError, match=r"iteration \d: the loss is .*; begin again with a lower"
    ):
        run(tmp_path / "out", iters=5, learning_rate=1e30)
    assert not (tmp_path / "out" / "config.json").exists()


def test_other_data_cannot_resume(run, data, tmp_path):
    output = tmp_path / "out"
    run(output, iters=4, stop_after=2)
    sums = data.parent / "sums.jsonl"
    before = sums.read_text()
    try:
        sums.write_text(before.replace("1 + 1", "1 + 7"))
        with pytest.raises(TrainingError, match="training data has changed"):
            run(output, iters=4, resume=True)
    finally:
        sums.write_text(before)


def test_a_finished_run_is_lengthened(run, tmp_path):
    output = tmp_path / "out"
    run(output, iters=2, save_every=9)
    before = (output / "model.safetensors").read_bytes()
    with pytest.raises(RequestError, match="has done 2 iterations; give more --iters"):
        run(output, iters=2, save_every=9, resume=True)
    result = run(output, iters=3, save_every=9, resume=True)
    assert (result.step, result.finished) == (3, True)
    assert [line["step"] for line in read_metrics(output / "training" / "metrics.jsonl")] == [
        1, 2, 3,
    ]  # fmt: skip
    assert (output / "model.safetensors").read_bytes() != before
    # At a constant rate it is the run that was longer from the start.
    run(tmp_path / "whole", iters=3)
    assert losses(output) == losses(tmp_path / "whole")
    assert (output / "model.safetensors").read_bytes() == (
        (tmp_path / "whole" / "model.safetensors").read_bytes()
    )


def test_two_runs_into_one_folder_are_refused(run, tmp_path):
    output = tmp_path / "out"
    with (
        output_lock(output, TrainingError),
        pytest.raises(TrainingError, match="out is being written by another process"),
    ):
        run(output, iters=1)
    assert list(tmp_path.iterdir()) == []


def test_old_checkpoints_stay_until_the_new_one_is_written(run, tmp_path, monkeypatch):
    output = tmp_path / "out"
    run(output, iters=9, save_every=1, keep=1, stop_after=1)
    seen = []

    def full(*_):
        seen.append(saved_steps(output))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jvlm_mlx.training.checkpoints._write_weights", full)
    with pytest.raises(TrainingError, match="step-00000002 cannot be written: No space left"):
        run(output, iters=9, save_every=1, keep=1, resume=True)
    assert seen == [[1]]
    assert saved_steps(output) == [1]
    assert {entry.name for entry in (output / "training").iterdir()} == {
        "metrics.jsonl", "step-00000001", "training_config.json",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(run, tmp_path, monkeypatch, kind):
    synced = []
    original = os.fsync

    def fsync(descriptor):
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        original(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    run(tmp_path / "out", iters=1, save_every=1, fine_tune_type=kind, scale=1.0)
    weights = "model.safetensors" if kind == "full" else "adapters.safetensors"
    assert {weights, "training_state.safetensors"} <= set(synced)


def test_a_loaded_model_is_trained_in_place(golden_folder, data, tmp_path):
    source = golden_folder / "tiny"
    model, _ = jvlm_mlx.load(source, dtype="float32")
    config = make_config(iters=1, text_fraction=0.5)
    with pytest.raises(RequestError, match="a loaded model needs source"):
        jvlm_mlx.train(model, data=data, output=tmp_path / "out", config=config)
    jvlm_mlx.train(model, source=source, data=data, output=tmp_path / "out", config=config)
    stored = mx.load(str(tmp_path / "out" / "model.safetensors"))
    trained = flat(model.parameters())
    assert stored.keys() == trained.keys()
    assert all(mx.array_equal(array, trained[path]) for path, array in stored.items())


def test_a_damaged_state_is_named(run, tmp_path):
    output = tmp_path / "out"
    run(output, iters=4, stop_after=2)
    file = step_folder(output, 2) / "training_state.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(TrainingError, match="cannot be used"):
        run(output, iters=4, resume=True)


def test_nothing_half_written_is_left_when_the_disk_is_full(run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jvlm_mlx.training.checkpoints.write_model", full)
    with pytest.raises(TrainingError, match="cannot be written: No space left"):
        run(tmp_path / "out", iters=2, save_every=1)
    assert not list(Path(tmp_path / "out" / "training").glob("step*"))
