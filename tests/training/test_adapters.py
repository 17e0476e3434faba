"""Adapters: what they add, what they leave alone, and how they become ordinary weights."""

import json
import shutil

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

import jvlm_mlx
from jvlm_mlx import CheckpointError, RequestError
from jvlm_mlx.checkpoint.adapters import AdapterConfig, _adapter, adapted_layers
from jvlm_mlx.errors import ConversionError
from jvlm_mlx.generation.model_identity import model_digest
from jvlm_mlx.training.loss import prepare
from jvlm_mlx.training.model_setup import prepare_model
from jvlm_mlx.training.reports import read_metrics
from tests.helpers.converting import write_grouped
from tests.helpers.training_case import (
    MODULES,
    make_config,
    make_loader,
    make_trainer,
    write_examples,
)


def lora(**changes):
    """Options of adapters for all modules."""
    values = {"fine_tune_type": "lora", "lora_modules": MODULES, "rank": 4, "scale": 2.0}
    return {**values, **changes}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_examples(tmp_path_factory.mktemp("examples"))


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A small checkpoint, and the same quantized; its tower's MLP is padded there."""
    folder = tmp_path_factory.mktemp("bases")
    plain = write_grouped(folder / "plain")
    jvlm_mlx.convert(plain, folder / "quantized", quantize=True, q_bits=4, q_group_size=32)
    return {"plain": plain, "quantized": folder / "quantized"}


def adapt(data, source, output, *, resume=False, stop_after=None, **changes):
    """Train adapters for a few iterations."""
    done = []
    return jvlm_mlx.train(
        source, data=data, output=output, config=make_config(**lora() | changes), resume=resume,
        should_stop=lambda: len(done) == stop_after, on_report=done.append,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(data, bases, tmp_path_factory):
    """Adapters of each kind on each base, trained for three iterations."""
    made = {}

    def get(kind, base):
        if (kind, base) not in made:
            output = made[kind, base] = tmp_path_factory.mktemp("adapters") / f"{kind}-{base}"
            # The padded rows of the quantized tower are nothing that dora can scale.
            some = ("attention.qkv", "projector.up")
            keys = some if (kind, base) == ("dora", "quantized") else None
            adapt(data, bases[base], output, iters=3, fine_tune_type=kind, lora_keys=keys)
        return made[kind, base]

    return get


def logits(model, processor, data):
    batch = make_loader(data, processor, text_fraction=0.5)[0]
    return model(
        batch.input_ids,
        pixel_values=batch.pixel_values,
        image_masks=batch.image_masks,
        image_input_idx=batch.image_input_idx,
    )


@pytest.mark.parametrize("base", ["plain", "quantized"])
def test_a_fresh_adapter_changes_nothing(data, bases, base):
    model, processor = jvlm_mlx.load(bases[base], dtype="float32")
    before = logits(model, processor, data)
    mx.eval(before)
    prepare_model(model, make_config(**lora()))
    assert len(adapted_layers(model)) > 20
    assert mx.array_equal(logits(model, processor, data), before)


@pytest.mark.parametrize("base", ["plain", "quantized"])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_only_adapters_learn(data, bases, base, kind):
    before = dict(tree_flatten(jvlm_mlx.load(bases[base], dtype="float32")[0].parameters()))
    keys = ("attention.qkv", "projector.up") if kind == "dora" else None
    trainer, processor = make_trainer(
        bases[base], learning_rate=3e-3, **lora(fine_tune_type=kind, lora_keys=keys)
    )
    model = trainer.model
    assert {path.rsplit(".", 1)[1] for path in trainer.parameters} == (
        {"lora_a", "lora_b", "m"} if kind == "dora" else {"lora_a", "lora_b"}
    )
    inputs = prepare(model, make_loader(data, processor, text_fraction=0.5)[0])
    losses = [trainer.step([inputs], step).loss for step in range(8)]
    assert losses[-1] < 0.8 * losses[0]
    after = {
        path.replace(".linear.", "."): array
        for path, array in tree_flatten(model.parameters())
        if path not in trainer.parameters
    }
    assert after.keys() == before.keys()
    for path, array in before.items():
        assert after[path].dtype == array.dtype
        assert mx.array_equal(after[path], array), path


def test_adapters_go_where_they_are_asked_for(bases):
    def layers(**changes):
        model, _ = jvlm_mlx.load(bases["plain"], dtype="float32")
        prepare_model(model, make_config(**lora(**changes)))
        return set(adapted_layers(model))

    everything = layers()
    assert layers(num_layers=-1) == everything
    assert "connector.pooling.kv" in everything
    assert "vision_tower.patch_embedding" not in everything
    assert "lm_head" not in everything
    assert layers(lora_modules=("connector",)) == {
        path for path in everything if path.startswith("connector.")
    }
    late = layers(lora_modules=("decoder",), num_layers=1)
    assert late == {f"decoder.layers.3.{name}" for name in
                    ("attention.qkv", "attention.out", "mlp.up", "mlp.down")}  # fmt: skip
    assert layers(lora_modules=("decoder",), num_layers=2, lora_keys=("mlp.up", "lm_head")) == {
        "decoder.layers.2.mlp.up", "decoder.layers.3.mlp.up", "lm_head",
    }  # fmt: skip
    with pytest.raises(RequestError, match=r"lora_keys: mlp\.gate names no linear layer"):
        layers(lora_keys=("mlp.gate",))


def test_a_frozen_module_gets_no_adapter(bases):
    model, _ = jvlm_mlx.load(bases["plain"], dtype="float32")
    prepare_model(model, make_config(**lora(freeze=("decoder",))))
    assert {path.split(".")[0] for path in adapted_layers(model)} == {"vision_tower", "connector"}


def test_quantized_weights_themselves_are_not_trained(bases):
    model, _ = jvlm_mlx.load(bases["quantized"], dtype="float32")
    with pytest.raises(RequestError, match="is quantized, and quantized weights cannot be trained"):
        prepare_model(model, make_config())


def test_dora_refuses_rows_of_zeros(bases):
    model, _ = jvlm_mlx.load(bases["quantized"], dtype="float32")
    with pytest.raises(CheckpointError, match=r"mlp\.up has rows of nothing.*choose lora"):
        prepare_model(model, make_config(**lora(fine_tune_type="dora")))


@pytest.mark.parametrize("bits", [3, 5, 6, 8])
def test_dora_fits_every_number_of_bits(bits):
    layer = nn.QuantizedLinear.from_linear(nn.Linear(64, 8), group_size=32, bits=bits)
    config = AdapterConfig("dora", 2, 1.0, 0.0, ("layer",))
    adapted = _adapter("layer", layer, config, mx.random.key(0))
    x = mx.random.normal((3, 64), key=mx.random.key(1))
    # The weight is unpacked first here, so sums are made in another order.
    np.testing.assert_allclose(np.array(adapted(x)), np.array(layer(x)), atol=1e-5)


def test_a_resumed_adapter_run_is_the_uninterrupted_one(data, bases, tmp_path):
    """With dropout: what is left out follows from the iteration."""
    changes = {"iters": 4, "dropout": 0.3, "grad_checkpoint": True}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    adapt(data, bases["plain"], whole, **changes)
    adapt(data, bases["plain"], parts, stop_after=2, **changes)
    adapt(data, bases["plain"], parts, resume=True, **changes)
    name = "training/metrics.jsonl"
    losses = [[line["loss"] for line in read_metrics(run / name)] for run in (whole, parts)]
    assert losses[0] == losses[1]
    one, other = (mx.load(str(run / "adapters.safetensors")) for run in (whole, parts))
    assert all(mx.array_equal(array, other[path]) for path, array in one.items())


def test_dropout_is_the_same_both_times_a_layer_is_computed(data, bases):
    gradients = []
    for checkpointing in (False, True):
        trainer, processor = make_trainer(
            bases["plain"], grad_checkpoint=checkpointing, **lora(dropout=0.5)
        )
        loader = make_loader(data, processor, text_fraction=0.5)
        inputs = prepare(trainer.model, loader[0])
        state = mx.array(mx.random.state[0])
        gradients.append(trainer.gradients([inputs], 3)[1])
        other = trainer.gradients([inputs], 4)[1]
        # Randomness of the process is not touched.
        assert mx.array_equal(mx.random.state[0], state)
        path = "decoder.layers.0.mlp.up.lora_b"
        assert not mx.allclose(gradients[-1][path], other[path])
    for path, array in gradients[0].items():
        scale = float(mx.max(mx.abs(array))) + 1e-6
        # Sums in another order.
        assert mx.max(mx.abs(gradients[1][path] - array)).item() < 1e-4 * scale, path


@pytest.mark.parametrize("base", ["plain", "quantized"])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_fused_weights_answer_as_the_adapter_does(data, bases, trained, tmp_path, kind, base):
    model, processor = jvlm_mlx.load(bases[base], adapter_path=trained(kind, base))
    expected = logits(model, processor, data)
    plain = logits(jvlm_mlx.load(bases[base])[0], processor, data)
    folder = jvlm_mlx.fuse(bases[base], trained(kind, base), tmp_path / "fused")
    fused, _ = jvlm_mlx.load(folder)
    found = logits(fused, processor, data)
    assert not adapted_layers(fused)
    assert not any(path.endswith(".scales") for path, _ in tree_flatten(fused.parameters()))
    scale = mx.max(mx.abs(expected - plain)).item()
    assert scale > 0.1, "an adapter that adds nothing would show nothing"
    # One sum instead of two, in float32.
    assert mx.max(mx.abs(found - expected)).item() < 1e-3 * scale


def test_padding_stays_only_where_an_adapter_uses_it(bases, trained, tmp_path):
    width = "vision_config", "block_config", "ffn_config", "size"

    def mlp_size(folder):
        config = json.loads((folder / "config.json").read_text())
        for key in width:
            config = config[key]
        return config

    assert mlp_size(bases["plain"]) == 100
    assert mlp_size(bases["quantized"]) == 128
    assert (
        mlp_size(jvlm_mlx.fuse(bases["quantized"], trained("lora", "quantized"), tmp_path / "a"))
        == 128
    )
    assert (
        mlp_size(jvlm_mlx.fuse(bases["quantized"], trained("dora", "quantized"), tmp_path / "b"))
        == 100
    )
    # Either can be quantized again.
    for name in ("a", "b"):
        jvlm_mlx.convert(tmp_path / name, tmp_path / f"{name}4", quantize=True, q_group_size=32)
        jvlm_mlx.load(tmp_path / f"{name}4")


def test_fused_weights_can_be_quantized_again(bases, trained, tmp_path):
    output = tmp_path / "fused"
    jvlm_mlx.fuse(
        bases["plain"], trained("lora", "plain"), output, quantize=True, q_group_size=32, q_bits=8
    )
    config = json.loads((output / "config.json").read_text())
    assert config["quantization"]["bits"] == 8
    assert config["jvlm_mlx"]["source"] == "fused"
    assert [entry.name for entry in tmp_path.iterdir()] == ["fused"]
    with pytest.raises(ConversionError, match="exists already"):
        jvlm_mlx.fuse(bases["plain"], trained("lora", "plain"), output)
    jvlm_mlx.fuse(bases["plain"], trained("lora", "plain"), output, force=True, dtype="bfloat16")
    model, _ = jvlm_mlx.load(output)
    assert model.dtype == mx.bfloat16
    with pytest.raises(RequestError, match="q_bits is for quantization"):
        jvlm_mlx.fuse(bases["plain"], trained("lora", "plain"), tmp_path / "other", q_bits=4)


def test_the_files_are_those_of_mlx_lm(bases, trained):
    from mlx_lm.tuner.utils import load_adapters

    folder = trained("lora", "plain")
    ours, _ = jvlm_mlx.load(bases["plain"], adapter_path=folder)
    theirs, _ = jvlm_mlx.load(bases["plain"])
    load_adapters(theirs, str(folder))
    one, other = (dict(tree_flatten(model.parameters())) for model in (ours, theirs))
    assert one.keys() == other.keys()
    assert all(mx.array_equal(array, other[path]) for path, array in one.items())


def test_answers_are_cached_for_each_adapter_apart(bases, trained, tmp_path):
    prints = {model_digest(jvlm_mlx.load(bases["plain"])[0])}
    folder = trained("lora", "plain")
    prints.add(model_digest(jvlm_mlx.load(bases["plain"], adapter_path=folder)[0]))
    # The same arrays with another factor.
    other = tmp_path / "other"
    other.mkdir()
    (other / "adapters.safetensors").write_bytes((folder / "adapters.safetensors").read_bytes())
    config = json.loads((folder / "adapter_config.json").read_text())
    config["lora_parameters"]["scale"] = 3.0
    (other / "adapter_config.json").write_text(json.dumps(config))
    prints.add(model_digest(jvlm_mlx.load(bases["plain"], adapter_path=other)[0]))
    assert len(prints) == 3


def test_an_adapter_records_its_base_model(bases, trained, tmp_path, golden_folder):
    folder = trained("lora", "plain")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["model"] == str(bases["plain"])
    # `fuse` needs no other model.
    named = jvlm_mlx.fuse(bases["plain"], folder, tmp_path / "named")
    found = jvlm_mlx.fuse(adapter_path=folder, output=tmp_path / "found")
    for file in ("model.safetensors", "config.json"):
        assert (named / file).read_bytes() == (found / file).read_bytes()


@pytest.mark.parametrize("place", ["folder", "file"])
def test_training_can_begin_with_an_adapter(data, bases, trained, tmp_path, place):
    folder = trained("lora", "plain")
    begin = folder if place == "folder" else folder / "adapters.safetensors"
    output = tmp_path / "out"
    jvlm_mlx.train(
        bases["plain"], data=data, output=output, resume_adapter_file=begin, rank=16,
        config=make_config(iters=1, learning_rate=1e-9, fine_tune_type="lora"),
    )  # fmt: skip
    before, after = (mx.load(str(one / "adapters.safetensors")) for one in (folder, output))
    # Rank and layers are the adapter's own, and a tiny step leaves it almost as it was.
    assert before.keys() == after.keys()
    for path, array in before.items():
        np.testing.assert_allclose(np.array(after[path]), np.array(array), atol=1e-6)
    config = json.loads((output / "adapter_config.json").read_text())
    assert config["lora_parameters"]["rank"] == 4
    assert config["lora_parameters"]["scale"] == 2.0
    with pytest.raises(RequestError, match="resume_adapter_file is for fine_tune_type lora"):
        jvlm_mlx.train(
            bases["plain"], data=data, output=tmp_path / "full", config=make_config(),
            resume_adapter_file=begin,
        )  # fmt: skip


def test_fuse_refuses_weights_that_are_not_finite(bases, trained, tmp_path):
    shutil.copytree(trained("lora", "plain"), tmp_path / "adapter")
    file = str(tmp_path / "adapter" / "adapters.safetensors")
    arrays = dict(mx.load(file))
    path = "decoder.layers.0.mlp.up.lora_b"
    arrays[path] = mx.full(arrays[path].shape, float("nan"))
    mx.save_safetensors(file, arrays)
    with pytest.raises((ConversionError, CheckpointError), match=r"mlp\.up.* not finite|NaN"):
        jvlm_mlx.fuse(bases["plain"], tmp_path / "adapter", tmp_path / "out")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["adapter"]


def without(arrays, path):
    return {name: array for name, array in arrays.items() if name != path}


PATH = "decoder.layers.0.mlp.up.lora_b"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda arrays, config: (without(arrays, PATH), config),
            r"decoder\.layers\.0\.mlp\.up\.lora_b is missing; expected shape \(4, ",
        ),
        (
            lambda arrays, config: (arrays | {PATH: mx.zeros((5, 2))}, config),
            r"mlp\.up\.lora_b in adapters\.safetensors has shape \(5, 2\); expected \(4, ",
        ),
        (
            lambda arrays, config: (arrays | {"decoder.extra": mx.zeros(1)}, config),
            r"decoder\.extra in adapters\.safetensors of shape \(1,\) has no place in the model",
        ),
        (
            lambda arrays, config: (
                arrays,
                config | {"lora_parameters": config["lora_parameters"] | {"keys": ["decoder.x"]}},
            ),
            r"adapter is for a layer decoder\.x, which this model has not",
        ),
        (
            lambda arrays, config: (arrays, config | {"fine_tune_type": "full"}),
            "fine_tune_type is 'full'; expected lora or dora",
        ),
        (
            lambda arrays, config: (arrays, config | {"lora_parameters": {"rank": 4}}),
            r"lora_parameters\.keys is missing",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(bases, trained, tmp_path, change, message):
    folder = trained("lora", "plain")
    config = json.loads((folder / "adapter_config.json").read_text())
    arrays, config = change(mx.load(str(folder / "adapters.safetensors")), config)
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), arrays)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message) as refused:
        jvlm_mlx.load(bases["plain"], adapter_path=tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scale": float("nan")}, "scale is nan; expected a finite number"),
        ({"dropout": 1.0}, r"dropout is 1\.0; expected from 0 to below 1"),
        ({"dropout": -1}, r"dropout is -1\.0; expected from 0 to below 1"),
        ({"keys": ["decoder.layers.0.mlp.up"] * 2}, "keys names a layer twice"),
    ],
)
def test_a_damaged_adapter_configuration_is_refused(bases, trained, tmp_path, values, message):
    shutil.copytree(trained("lora", "plain"), tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(file.read_text())
    config["lora_parameters"] |= values
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        jvlm_mlx.load(bases["plain"], adapter_path=tmp_path / "adapter")


def test_a_folder_without_adapter_is_named(bases, tmp_path):
    with pytest.raises(CheckpointError, match="there is no folder"):
        jvlm_mlx.load(bases["plain"], adapter_path=tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"holds no adapter: it has no adapter_config\.json"):
        jvlm_mlx.load(bases["plain"], adapter_path=tmp_path)
    for name in ("~nosuch", "x" * 300):
        with pytest.raises(CheckpointError, match=name[:50]):
            jvlm_mlx.load(bases["plain"], adapter_path=name)
