"""Quantized conversions: mlx's own rounding, applied to the source, in every format."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

import jvlm_mlx
from benchmarks.random_checkpoint import write_random_checkpoint
from jvlm_mlx.checkpoint.loader import read_config
from jvlm_mlx.checkpoint.quantization import Quantization, pack, unpack
from jvlm_mlx.checkpoint.reader import CheckpointFiles
from jvlm_mlx.checkpoint.weights import Checkpoint
from jvlm_mlx.conversion import converter as converter_module
from jvlm_mlx.conversion.converter import convert
from jvlm_mlx.errors import RequestError
from jvlm_mlx.model import Model
from tests.helpers.converting import (
    answers,
    bytes_of,
    config_of,
    grouped_config,
    inputs_of,
    mlp_size_of,
    same_answers,
    tensors_of,
    write_grouped,
)


@pytest.mark.parametrize(
    ("recipe", "mode", "bits", "group_size"),
    [
        ("uniform", "affine", 4, 32),
        ("uniform", "affine", 3, 64),
        ("mixed", "affine", 2, 32),
        ("language-only", "affine", 8, 64),
        ("mixed", "mxfp4", None, None),
        ("uniform", "nvfp4", None, None),
        ("uniform", "mxfp8", None, None),
    ],
)
def test_quantized_answers_are_those_of_mlx_quantizing_the_source(
    grouped, tmp_path, golden_folder, recipe, mode, bits, group_size
):
    out = tmp_path / "out"
    convert(
        grouped, out,
        quantize=True, recipe=recipe, q_mode=mode, q_bits=bits, q_group_size=group_size,
    )  # fmt: skip
    # The source's model, padded by hand and quantized by mlx.nn as config.json says.
    source, processor = jvlm_mlx.load(grouped)
    model = Model(read_config(out).model)
    shapes = {path: array.shape for path, array in tree_flatten(model.parameters())}
    weights = []
    for path, array in tree_flatten(source.parameters()):
        missing = [(0, size - have) for size, have in zip(shapes[path], array.shape, strict=True)]
        weights.append((path, mx.array(np.pad(np.array(array), missing))))
    model.load_weights(weights)
    entries = config_of(out)["quantization"]
    assert entries == config_of(out)["quantization_config"]
    common = {key: entries[key] for key in ("group_size", "bits", "mode")}
    nn.quantize(
        model,
        class_predicate=lambda path, module: (
            entries.get(path, common) if isinstance(module, nn.Linear | nn.Embedding) else False
        ),
    )
    expected = [np.array(model(**inputs)) for inputs in inputs_of(processor, golden_folder)]
    assert same_answers(answers(out, golden_folder), expected)


def test_packed_tensors_are_those_of_the_source_tensors(grouped, tmp_path):
    convert(grouped, tmp_path / "out", quantize=True, q_group_size=32, q_bits=5)
    source, out = tensors_of(grouped), tensors_of(tmp_path / "out")
    embedding = "model.language_model.embedding"
    table = [source[f"{embedding}.{name}"] for name in ("embedding", "new_embedding")]
    tower = "model.vision_model.layers.2.ffn"
    for name, weight in (
        ("decoder.embedding", mx.concatenate(table)),
        ("lm_head", source["lm_head.weight"]),
        ("connector.pooling.kv", source["model.vision_model.vl_connector.pooling.kv_w.weight"]),
        # 100 rows, or columns, are padded to 128.
        ("vision_tower.layers.2.mlp.up", mx.pad(source[f"{tower}.up.weight"], [(0, 28), (0, 0)])),
        ("vision_tower.layers.2.mlp.down",
         mx.pad(source[f"{tower}.down.weight"], [(0, 0), (0, 28)])),
    ):  # fmt: skip
        packed = mx.quantize(weight, group_size=32, bits=5)
        for kind, expected in zip(("weight", "scales", "biases"), packed, strict=True):
            assert mx.array_equal(out[f"{name}.{kind}"], expected).item(), f"{name}.{kind}"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_values_are_rounded_to_the_type_before_they_are_packed(grouped, tmp_path, dtype):
    """As mlx does when the layers of a model are quantized that was cast first."""
    convert(grouped, tmp_path / "out", quantize=True, q_group_size=32, dtype=dtype)
    out = tensors_of(tmp_path / "out")
    head = tensors_of(grouped)["lm_head.weight"]
    expected = mx.quantize(head.astype(getattr(mx, dtype)), group_size=32, bits=4)
    for kind, array in zip(("weight", "scales", "biases"), expected, strict=True):
        assert out[f"lm_head.{kind}"].dtype == array.dtype
        assert mx.array_equal(out[f"lm_head.{kind}"], array).item(), kind
    # The other order packs other numbers, so the comparison above can tell them apart.
    unrounded = mx.quantize(head, group_size=32, bits=4)[0]
    assert not mx.array_equal(unrounded, expected[0]).item()


def test_an_odd_number_of_groups_is_packed_as_in_a_larger_whole():
    """Which blocks of rows may have, though no layer does."""
    form = Quantization(group_size=16, bits=4, mode="nvfp4")
    values = mx.random.normal((4, 48), key=mx.random.key(0))
    whole = mx.quantize(values, 16, 4, "nvfp4")
    for array, expected in zip(pack(values[:3], form), whole, strict=True):
        assert array.shape == (3, expected.shape[1])
        assert mx.array_equal(array, expected[:3]).item()
    unpacked = mx.dequantize(*whole, group_size=16, bits=4, mode="nvfp4")
    found = unpack([array[:3] for array in whole], form, mx.float32)
    assert found.shape == (3, 48)
    assert mx.array_equal(found, unpacked[:3]).item()


def test_norms_positions_paddings_and_patches_are_never_quantized(grouped, tmp_path):
    convert(grouped, tmp_path / "out", quantize=True, q_group_size=32)
    source, out = tensors_of(grouped), tensors_of(tmp_path / "out")
    for name, source_name in (
        ("vision_tower.position_embedding", "vision_model.pos_embed"),
        ("vision_tower.patch_embedding.weight", "vision_model.patch_embed.proj.weight"),
        ("connector.pad_embed", "vision_model.vl_connector.pad_embed"),
        ("decoder.norm.weight", "language_model.ln_f.weight"),
        ("decoder.layers.1.attention.q_norm.weight", "language_model.layers.1.attn.q_lnorm.weight"),
    ):
        assert mx.array_equal(out[name], source[f"model.{source_name}"]).item(), name
    assert config_of(tmp_path / "out")["quantization"]["vision_tower.patch_embedding"] is False


def test_padding_is_lossless_to_rounding(grouped, tmp_path, golden_folder):
    # Groups of 128 fit only the padded width, so everything else of the tower stays as it is.
    convert(grouped, tmp_path / "padded", quantize=True, q_bits=8, q_group_size=128)
    convert(tmp_path / "padded", tmp_path / "plain", dequantize=True)
    assert (mlp_size_of(tmp_path / "padded"), mlp_size_of(tmp_path / "plain")) == (128, 100)
    padded, plain = tensors_of(tmp_path / "padded"), tensors_of(tmp_path / "plain")
    for kind in ("weight", "bias"):
        name = f"vision_tower.layers.0.mlp.up.{kind}"
        assert mx.array_equal(padded[name][:100], plain[name]).item()
        assert not mx.any(padded[name][100:]).item()
    assert plain["vision_tower.layers.0.mlp.down.weight"].shape == (64, 100)
    for one, other in zip(
        answers(tmp_path / "padded", golden_folder),
        answers(tmp_path / "plain", golden_folder),
        strict=True,
    ):
        # The same numbers, multiplied packed or unpacked: float32 sums in another order.
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_dequantized_weights_are_the_rounded_ones(grouped, tmp_path):
    convert(grouped, tmp_path / "packed", quantize=True, q_group_size=32, recipe="mixed")
    convert(tmp_path / "packed", tmp_path / "plain", dequantize=True)
    convert(grouped, tmp_path / "direct")
    packed, plain = tensors_of(tmp_path / "packed"), tensors_of(tmp_path / "plain")
    parts = [packed[f"lm_head.{kind}"] for kind in ("weight", "scales", "biases")]
    head = mx.dequantize(*parts, group_size=32, bits=6)
    assert mx.array_equal(plain["lm_head.weight"], head).item()
    # The geometry of the source is back.
    found, expected = config_of(tmp_path / "plain"), config_of(tmp_path / "direct")
    assert "quantization" not in found
    assert found["vision_config"] == expected["vision_config"]


def test_quantizing_a_conversion_is_quantizing_the_source(grouped, tmp_path):
    options = {"quantize": True, "q_group_size": 32, "recipe": "mixed"}
    convert(grouped, tmp_path / "plain")
    convert(tmp_path / "plain", tmp_path / "via", **options)
    convert(grouped, tmp_path / "direct", **options)
    assert bytes_of(tmp_path / "via") == bytes_of(tmp_path / "direct")


def test_what_the_existing_conversion_quantized_stays_and_the_rest_is_added(
    golden_folder, tmp_path
):
    source = tensors_of(golden_folder / "tiny-mlx-4bit")
    convert(golden_folder / "tiny-mlx-4bit", tmp_path / "out", quantize=True, q_group_size=32)
    out = tensors_of(tmp_path / "out")
    for kind in ("weight", "scales", "biases"):
        expected = source[f"language_model.layers.1.ffn.gate_up.{kind}"]
        assert mx.array_equal(out[f"decoder.layers.1.mlp.up.{kind}"], expected).item()
    # Left alone by the existing conversion: embeddings, and what did not fit in the tower.
    assert out["decoder.embedding.weight"].dtype == mx.uint32
    assert out["vision_tower.layers.0.mlp.down.weight"].dtype == mx.uint32


def test_quantizing_twice_must_be_asked_for(golden_folder, tmp_path):
    source = golden_folder / "tiny-mlx-4bit"
    options = {"quantize": True, "q_group_size": 32, "q_bits": 8}
    with pytest.raises(RequestError, match="is quantized already, and in another way; convert"):
        convert(source, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    convert(source, tmp_path / "out", dequantize=True, **options)
    files = CheckpointFiles(tmp_path / "out")
    found = Checkpoint.open(files, read_config(tmp_path / "out").model).quantized
    assert {quantization.bits for quantization in found.values()} == {8}


def test_a_gated_tower_is_left_at_its_width(tmp_path, golden_folder):
    config = grouped_config()
    config["vision_config"]["block_config"]["ffn_config"]["gated_activation"] = True
    source = write_random_checkpoint(tmp_path / "source", config, dtype="float32")
    conversion = convert(source, tmp_path / "out", quantize=True, q_group_size=32)
    # Its first projection has two halves, so rows at the end would be the wrong ones.
    assert conversion.plan.mlp_size == 100
    assert "vision_tower.layers.0.mlp.down" in conversion.plan.unfit
    assert len(answers(tmp_path / "out", golden_folder)) == 2


def test_mlx_lm_builds_the_model_from_the_config_alone(grouped, tmp_path):
    from mlx_lm.utils import load_model

    out = tmp_path / "out"
    convert(grouped, out, quantize=True, q_mode="nvfp4", recipe="mixed", max_shard_bytes=200_000)
    config = read_config(out).model

    # What mlx-lm wants for a model of one's own: its class and one that reads the config_json.
    class Arguments:
        from_dict = staticmethod(lambda _: config)

    def classes(config):
        return Model, Arguments

    model, _ = load_model(out, get_model_classes=classes)
    expected, processor = jvlm_mlx.load(out)
    inputs = processor(text=[" User: What is the capital of France? Assistant:"])
    assert mx.array_equal(model(**inputs), expected(**inputs)).item()


def test_a_tower_whose_first_projection_is_packed_already_is_padded(
    tmp_path, golden_folder, monkeypatch
):
    """As the existing conversion leaves the released tower: 4304 rows fit, 4304 inputs do not."""
    # Blocks of 7 rows, so that the last ones are nothing but padding.
    monkeypatch.setattr(converter_module, "MAX_BLOCK_VALUES", 7 * 64)
    source = write_grouped(tmp_path / "source", layout="mlx")
    weights = tensors_of(source)
    for layer in range(5):
        name = f"vision_model.layers.{layer}.ffn.up"
        packed = mx.quantize(weights[f"{name}.weight"], group_size=32, bits=4)
        for kind, array in zip(("weight", "scales", "biases"), packed, strict=True):
            weights[f"{name}.{kind}"] = array
    mx.save_safetensors(str(source / "model.safetensors"), weights)
    out = tmp_path / "out"
    convert(source, out, quantize=True, q_group_size=32)
    found = tensors_of(out)
    for kind in ("weight", "scales", "biases"):
        rows = found[f"vision_tower.layers.1.mlp.up.{kind}"]
        assert mx.array_equal(rows[:100], weights[f"vision_model.layers.1.ffn.up.{kind}"]).item()
        assert rows.shape[0] == 128
        assert not mx.any(rows[100:]).item()
    # Nothing else than rounding the rest: dequantized, it is the source with a rounded rest.
    convert(out, tmp_path / "plain", dequantize=True)
    assert mlp_size_of(tmp_path / "plain") == 100
    for one, other in zip(
        answers(out, golden_folder), answers(tmp_path / "plain", golden_folder), strict=True
    ):
        # The same numbers, multiplied packed or unpacked: float32 sums in another order.
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_half_precision_scales_unpack_to_float32_without_another_rounding(tmp_path):
    source = write_grouped(tmp_path / "source", dtype="bfloat16")
    convert(source, tmp_path / "packed", quantize=True, q_group_size=32)
    convert(tmp_path / "packed", tmp_path / "plain", dequantize=True, dtype="float32")
    packed, plain = tensors_of(tmp_path / "packed"), tensors_of(tmp_path / "plain")
    values = np.array(mx.unflatten(packed["lm_head.weight"], -1, (2, 4)))
    # Eight 4-bit numbers in each 32 bits, lowest first; two groups of 32 in a row.
    numbers = (values[..., None] >> np.arange(0, 32, 4)).reshape(-1, 2, 32) & 15
    scales, biases = (
        np.array(packed[f"lm_head.{kind}"].astype(mx.float32))[..., None]
        for kind in ("scales", "biases")
    )
    expected = (numbers * scales + biases).reshape(-1, 64)
    # One multiplication and one addition, fused or not.
    np.testing.assert_allclose(np.array(plain["lm_head.weight"]), expected, rtol=0, atol=1e-7)
