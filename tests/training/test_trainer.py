"""Whole runs: learning by heart, going on after an interruption, what is written."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import jvlm_mlx
from jvlm_mlx.errors import TrainingError
from jvlm_mlx.training import prepare_model, train, validation_feed
from jvlm_mlx.training.checkpoints import saved_steps, step_folder
from jvlm_mlx.training.loss import prepare
from jvlm_mlx.training.metrics import read_metrics
from jvlm_mlx.training.optimizer import flat
from jvlm_mlx.training.processes import Processes
from jvlm_mlx.training.step import Trainer
from tests.helpers.training_case import (
    COLORS,
    QUESTION,
    feed_config,
    make_config,
    make_data,
    make_feed,
    part,
    write_rows,
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture
def run(golden_folder, rows):
    """Runs a training, and returns its result."""

    def run(output, *, resume=False, stop_after=None, validates=False, batch_size=4, **changes):
        config = make_config(**changes)
        source = golden_folder / "tiny"
        weights = step_folder(output, saved_steps(output)[-1]) if resume else source
        model, processor = jvlm_mlx.load(weights, dtype="float32")
        feed = make_feed(rows, processor, batch_size=batch_size)
        validation = None
        if validates:
            validation = validation_feed(make_data(rows, processor), feed_config())
        prepare_model(model, config, None)
        done = []
        return train(
            model,
            feed,
            config,
            output,
            source,
            processes=Processes(),
            validation=validation,
            resume=resume,
            should_stop=lambda: len(done) == stop_after,
            progress=done.append,
        )

    return run


def losses(output):
    return [line["loss"] for line in read_metrics(output / "training" / "metrics.jsonl")]


def test_a_few_rows_are_learned_by_heart(run, rows, tmp_path):
    output = tmp_path / "out"
    rates = {name: part(learning_rate=3e-3, warmup_steps=3) for name in ("vision_tower", "decoder")}
    result = run(
        output,
        steps=60,
        batch_size=8,
        connector=part(learning_rate=6e-3),
        max_grad_norm=1.0,
        **rates,
    )
    assert result.finished
    assert result.step == 60
    assert result.last.loss < 0.02
    model, processor = jvlm_mlx.load(output)
    for name in COLORS:
        answer = jvlm_mlx.generate(
            model, processor, QUESTION, rows.parent / f"{name}.png", max_crops=1, max_tokens=8
        )
        assert answer.text.strip() == name
        assert answer.finish_reason == "stop"
    assert jvlm_mlx.generate(model, processor, "1 + 1?", max_tokens=8).text.strip() == "2"


def test_a_resumed_run_is_the_uninterrupted_one(run, tmp_path):
    changes = {"steps": 6, "max_grad_norm": 1.0, "accumulate": 2, "decoder": part(decay="cosine")}
    run(tmp_path / "whole", **changes)
    first = run(tmp_path / "parts", stop_after=3, **changes)
    assert not first.finished
    assert first.step == 3
    assert first.path == step_folder(tmp_path / "parts", 3)
    assert not (tmp_path / "parts" / "config.json").exists()
    second = run(tmp_path / "parts", resume=True, **changes)
    assert second.finished
    assert len(losses(tmp_path / "whole")) == 6
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    whole, parts = (
        mx.load(str(tmp_path / name / "model.safetensors")) for name in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    for path, array in whole.items():
        assert mx.array_equal(array, parts[path]), path


def test_bfloat16_goes_on_with_float32_weights(run, tmp_path):
    changes = {"steps": 4, "dtype": "bfloat16"}
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


def test_a_killed_run_goes_on_from_its_checkpoint(run, tmp_path):
    """What it did after that is done, and reported, once more; half a line is no harm."""
    output = tmp_path / "out"
    run(output, steps=5, save_every=2, stop_after=3)
    metrics = output / "training" / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 4, "lo')
    shutil.rmtree(step_folder(output, 3))
    (output / "training" / "step-00000004.writing").mkdir()
    run(output, steps=5, save_every=2, resume=True)
    assert [line["step"] for line in read_metrics(metrics)] == [1, 2, 3, 4, 5]
    assert saved_steps(output) == [2, 4]


def test_checkpoints_are_kept_by_number_and_load_like_any_other(run, tmp_path):
    output = tmp_path / "out"
    run(output, steps=5, save_every=1, keep=2)
    assert saved_steps(output) == [3, 4]
    for folder in (output, step_folder(output, 3)):
        model, processor = jvlm_mlx.load(folder)
        assert jvlm_mlx.generate(model, processor, "1 + 1?", max_tokens=2).text
    assert sorted(entry.name for entry in (output / "training").iterdir()) == [
        "metrics.jsonl", "step-00000003", "step-00000004",
    ]  # fmt: skip
    # It can be converted like any other, too.
    jvlm_mlx.convert(output, tmp_path / "converted", dtype="bfloat16")


def test_metrics_say_what_happened(run, tmp_path):
    output = tmp_path / "out"
    run(
        output,
        steps=4,
        report_every=3,
        validate_every=2,
        validates=True,
        connector=part(learning_rate=8e-3, warmup_steps=2),
        vision_tower=part(trainable=False),
    )
    lines = read_metrics(output / "training" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [2, 3, 4]
    assert [line["step"] for line in lines if "validation_loss" in line] == [2, 4]
    assert lines[0]["learning_rates"] == {"connector": 8e-3, "decoder": 1e-3}
    for line in lines:
        assert line["gradient_norm"] > 0
        assert line["tokens_per_second"] > line["images_per_second"] > 0
        assert line["peak_memory"] > 0
        assert line["target_tokens"] > 0


def test_validation_is_the_mean_over_all_rows(run, golden_folder, rows, tmp_path):
    output = tmp_path / "out"
    run(output, steps=1, validate_every=1, validates=True)
    (line,) = read_metrics(output / "training" / "metrics.jsonl")
    model, processor = jvlm_mlx.load(output, dtype="float32")
    config = make_config()
    prepare_model(model, config, None)
    feed = validation_feed(make_data(rows, processor), feed_config(batch_size=7))
    assert feed.batches.steps_per_epoch == 1
    trainer = Trainer(model, config, Processes())
    whole = trainer.loss([prepare(model, feed.batches[0])])
    assert line["validation_loss"] == pytest.approx(whole, rel=1e-5)  # one batch instead of two


@pytest.mark.parametrize("frozen", ["vision_tower", "connector", "decoder"])
def test_a_frozen_part_stays_as_it_is(run, golden_folder, tmp_path, frozen):
    run(tmp_path / "out", steps=2, weight_decay=0.1, **{frozen: part(trainable=False)})
    before = flat(jvlm_mlx.load(golden_folder / "tiny", dtype="float32")[0].parameters())
    after = flat(jvlm_mlx.load(tmp_path / "out")[0].parameters())
    owners = {"lm_head": "decoder"}
    for path, array in before.items():
        first = path.split(".")[0]
        is_frozen = owners.get(first, first) == frozen
        assert mx.array_equal(after[path], array).item() == is_frozen, path


def test_clipping_shortens_all_gradients_alike(golden_folder, rows):
    changes = []
    for limit in (None, 0.1):
        model, processor = jvlm_mlx.load(golden_folder / "tiny", dtype="float32")
        # Without a past and with a huge eps, AdamW moves by the gradient itself.
        config = make_config(max_grad_norm=limit, eps=1e6, weight_decay=0.0,
                                 **{name: part(learning_rate=1e6) for name in
                                    ("vision_tower", "connector", "decoder")})  # fmt: skip
        prepare_model(model, config, None)
        trainer = Trainer(model, config, Processes())
        before = trainer.parameters
        batch = make_feed(rows, processor).batches[0]
        result = trainer.step([prepare(model, batch)], 0)
        changes.append(
            np.concatenate([
                np.array(trainer.parameters[path] - array).ravel() for path, array in before.items()
            ])
        )  # fmt: skip
    assert result.gradient_norm > 1
    # Differences of float32 weights.
    assert np.linalg.norm(changes[1]) == pytest.approx(0.1, rel=1e-3)
    np.testing.assert_allclose(changes[1], changes[0] * 0.1 / result.gradient_norm, atol=1e-6)


def test_a_loss_that_is_no_number_ends_the_run_in_one_line(run, tmp_path):
    # Steps so long that float32 overflows.
    rates = {name: part(learning_rate=1e30) for name in ("vision_tower", "connector", "decoder")}
    with pytest.raises(TrainingError, match=r"step \d: the loss is .*; begin again with a lower"):
        run(tmp_path / "out", steps=5, **rates)
    assert not (tmp_path / "out" / "config.json").exists()


def test_other_data_cannot_go_on(run, golden_folder, rows, tmp_path, monkeypatch):
    output = tmp_path / "out"
    run(output, steps=4, stop_after=2)
    sums = rows.parent / "sums.jsonl"
    before = sums.read_text()
    try:
        sums.write_text(before.replace("1 + 1", "1 + 7"))
        with pytest.raises(TrainingError, match="training data has changed"):
            run(output, steps=4, resume=True)
    finally:
        sums.write_text(before)


def test_a_damaged_state_is_named(run, tmp_path):
    output = tmp_path / "out"
    run(output, steps=4, stop_after=2)
    file = step_folder(output, 2) / "training_state.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(TrainingError, match="cannot be used"):
        run(output, steps=4, resume=True)


def test_nothing_half_written_is_left_when_the_disk_is_full(run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jvlm_mlx.training.trainer.write_model", full)
    with pytest.raises(TrainingError, match="cannot be written: No space left"):
        run(tmp_path / "out", steps=2, save_every=1)
    assert not list(Path(tmp_path / "out" / "training").glob("step*"))
