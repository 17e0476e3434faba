"""Conversion keeps what it says it keeps: values, answers, files; from every source."""

import itertools
import json

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

import jvlm_mlx
from benchmarks.random_checkpoint import small_config, write_random_checkpoint
from jvlm_mlx.checkpoint.loader import read_config
from jvlm_mlx.checkpoint.writer import Output, file_header
from jvlm_mlx.config.dtypes import BY_CODE
from jvlm_mlx.conversion import converter as converter_module
from jvlm_mlx.conversion.converter import convert
from tests.helpers.converting import (
    answers,
    bytes_of,
    config_of,
    decoder_attention,
    edit_config,
    edit_weights,
    names_of,
    same_answers,
    tensors_of,
    write_grouped,
)

SOURCES = {
    "original": lambda golden, _: golden / "tiny",
    "existing mlx": lambda golden, _: golden / "tiny-mlx",
    "existing mlx, quantized": lambda golden, _: golden / "tiny-mlx-4bit",
    "sharded bfloat16": lambda _, folder: write_random_checkpoint(
        folder / "random", small_config(), max_shard_bytes=150_000
    ),
    "tied head": lambda _, folder: write_grouped(folder / "random", tied=True),
    "own": lambda _, folder: write_grouped(folder / "random", layout="own", dtype="float16"),
}


@pytest.fixture(params=SOURCES)
def any_source(request, golden_folder, tmp_path):
    return SOURCES[request.param](golden_folder, tmp_path)


def test_answers_of_every_source_stay_equal_bit_for_bit(any_source, tmp_path, golden_folder):
    convert(any_source, tmp_path / "out")
    expected = answers(any_source, golden_folder, "float32")
    assert same_answers(answers(tmp_path / "out", golden_folder, "float32"), expected)


def test_the_output_has_the_parameters_of_the_model_and_nothing_else(any_source, tmp_path):
    convert(any_source, tmp_path / "out")
    model, _ = jvlm_mlx.load(tmp_path / "out")
    assert names_of(tmp_path / "out") == set(dict(tree_flatten(model.parameters())))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"quantize": True, "q_group_size": 32, "recipe": "mixed"},
        {"quantize": True, "q_mode": "mxfp4", "recipe": "language-only"},
        {"quantize": True, "q_mode": "nvfp4", "recipe": "mixed"},
        {"dtype": "bfloat16", "max_shard_bytes": 200_000},
    ],
)
def test_converting_the_output_again_changes_no_byte(grouped, tmp_path, options):
    convert(grouped, tmp_path / "once", **options)
    shards = {"max_shard_bytes": options["max_shard_bytes"]} if "max_shard_bytes" in options else {}
    convert(tmp_path / "once", tmp_path / "twice", **shards)
    assert bytes_of(tmp_path / "twice") == bytes_of(tmp_path / "once")


def test_asking_for_what_is_there_already_changes_no_byte(grouped, tmp_path):
    options = {"quantize": True, "q_group_size": 32, "recipe": "mixed", "dtype": "float32"}
    convert(grouped, tmp_path / "once", **options)
    convert(tmp_path / "once", tmp_path / "twice", **options)
    assert bytes_of(tmp_path / "twice") == bytes_of(tmp_path / "once")


@pytest.mark.parametrize("mode", [{"q_group_size": 32}, {"q_mode": "nvfp4"}])
def test_the_size_of_blocks_makes_no_difference(grouped, tmp_path, monkeypatch, mode):
    options = {"quantize": True, **mode}
    convert(grouped, tmp_path / "large", **options)
    # A block of 7 rows of 64: blocks end within parts, within padding, between sampled rows.
    monkeypatch.setattr(converter_module, "MAX_BLOCK_VALUES", 7 * 64)
    convert(grouped, tmp_path / "small", **options)
    assert bytes_of(tmp_path / "small") == bytes_of(tmp_path / "large")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_dtype_is_that_of_mlx_rounding(grouped, tmp_path, dtype):
    convert(grouped, tmp_path / "out", dtype=dtype)
    source, out = tensors_of(grouped), tensors_of(tmp_path / "out")
    wanted = getattr(mx, dtype)
    assert {array.dtype for array in out.values()} == {wanted}
    assert mx.array_equal(out["lm_head.weight"], source["lm_head.weight"].astype(wanted)).item()
    assert config_of(tmp_path / "out")["torch_dtype"] == dtype


def test_unused_layers_and_zero_biases_are_dropped(golden_folder, tmp_path):
    conversion = convert(golden_folder / "tiny", tmp_path / "out")
    names = names_of(tmp_path / "out")
    used = read_config(tmp_path / "out").model.tower.num_used_layers
    assert f"vision_tower.layers.{used - 1}.mlp.up.weight" in names
    assert f"vision_tower.layers.{used}.mlp.up.weight" not in names
    assert not any(name.startswith("vision_tower.final_norm") for name in names)
    assert not any(name.startswith("decoder") and name.endswith("bias") for name in names)
    assert "model.vision_model.post_lnorm.weight" in conversion.plan.dropped
    assert "model.language_model.layers.0.attn.q_b" in conversion.plan.dropped


@pytest.mark.parametrize("said", [False, True])
def test_decoder_biases_that_are_not_zero_stay(tiny_copy, golden_folder, tmp_path, said):
    edit_weights(
        tiny_copy, lambda tensors: tensors["model.language_model.layers.1.attn.k_b"].put(3, 0.5)
    )
    edit_config(tiny_copy, lambda config: set_biases(config, said))
    convert(tiny_copy, tmp_path / "out")
    expected = answers(tiny_copy, golden_folder)
    assert same_answers(answers(tmp_path / "out", golden_folder), expected)
    assert decoder_attention(config_of(tmp_path / "out"))["k_bias"] is True
    convert(tmp_path / "out", tmp_path / "again")
    assert bytes_of(tmp_path / "again") == bytes_of(tmp_path / "out")


def test_zero_decoder_biases_are_dropped_even_if_the_config_asks_for_them(
    tiny_copy, golden_folder, tmp_path
):
    edit_config(tiny_copy, lambda config: set_biases(config, True))
    conversion = convert(tiny_copy, tmp_path / "out")
    attention = decoder_attention(config_of(tmp_path / "out"))
    assert attention["q_bias"] is attention["k_bias"] is attention["v_bias"] is False
    names = names_of(tmp_path / "out")
    assert not any(name.startswith("decoder") and name.endswith("bias") for name in names)
    assert "model.language_model.layers.0.attn.q_b" in conversion.plan.dropped
    expected = answers(tiny_copy, golden_folder)
    assert same_answers(answers(tmp_path / "out", golden_folder), expected)


def set_biases(config, value):
    decoder_attention(config).update(q_bias=value, k_bias=value, v_bias=value)


def test_padding_rows_of_a_head_are_dropped(tiny_copy, golden_folder, tmp_path):
    def pad(tensors):
        tensors["lm_head.weight"] = np.pad(tensors["lm_head.weight"], [(0, 16), (0, 0)])

    edit_weights(tiny_copy, pad)
    convert(tiny_copy, tmp_path / "out")
    convert(golden_folder / "tiny", tmp_path / "expected")
    found, expected = (bytes_of(tmp_path / name) for name in ("out", "expected"))
    assert found["model.safetensors"] == expected["model.safetensors"]


def test_tensors_are_aligned_whatever_their_sizes():
    outputs = [
        Output(f"{dtype}-{size}", (size,), dtype)
        for size in (1, 3, 5)
        for dtype in ("U8", "F16", "U32")
    ]
    data, starts = file_header(outputs)
    for output in outputs:
        assert starts[output.name] % BY_CODE[output.dtype].nbytes == 0
    # One behind the other, as the format demands.
    places = sorted((starts[output.name], output.nbytes) for output in outputs)
    assert places[0][0] == len(data)
    for (start, size), (following, _) in itertools.pairwise(places):
        assert start + size == following


def test_shards_have_an_index_and_aligned_tensors(grouped, tmp_path):
    out = tmp_path / "out"
    convert(grouped, out, quantize=True, q_group_size=32, dtype="float16", max_shard_bytes=100_000)
    files = sorted(out.glob("*.safetensors"))
    assert len(files) > 3
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == names_of(out)
    sizes = {"F16": 2, "U32": 4}
    for file in files:
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        assert header.pop("__metadata__") == {"format": "mlx"}
        for name, entry in header.items():
            assert index["weight_map"][name] == file.name
            assert (8 + length + entry["data_offsets"][0]) % sizes[entry["dtype"]] == 0


def test_all_other_files_come_along(tiny_copy, tmp_path):
    (tiny_copy / "LICENSE").write_text("as you like")
    (tiny_copy / "notes.txt").write_text("not part of a checkpoint")
    convert(tiny_copy, tmp_path / "out")
    source, out = bytes_of(tiny_copy), bytes_of(tmp_path / "out")
    kept = {"LICENSE", "chat_template.jinja"} | {name for name in source if name.endswith(".json")}
    for name in kept - {"config.json"}:
        assert out[name] == source[name], name
    assert "notes.txt" not in out


def test_the_record_names_the_source_through_all_conversions(grouped, tmp_path):
    convert(grouped, tmp_path / "plain")
    convert(grouped, tmp_path / "one", dtype="bfloat16")
    convert(tmp_path / "one", tmp_path / "two", quantize=True, q_group_size=32)
    # Rounding to 8 bits of precision: 2^-9 at most, and about a third of that on the average.
    first = config_of(tmp_path / "one")["jvlm_mlx"]["weight_error"]
    assert all(0.001 < error < 0.002 for error in first.values())
    record = config_of(tmp_path / "two")["jvlm_mlx"]
    assert record["source"] == grouped.name
    assert record["recipe"] == "uniform"
    assert record["unpadded_mlp_size"] == 100
    # Rounding normally distributed values to 16 steps costs about 8 %; mlx reports no figure.
    assert 0.05 < record["weight_error"]["decoder"] < 0.12
    card = (tmp_path / "two" / "README.md").read_text()
    assert f"`{grouped.name}`, converted by jvlm-mlx" in card
    convert(tmp_path / "plain", tmp_path / "three", dtype="float16")
    assert config_of(tmp_path / "three")["jvlm_mlx"]["weight_error"]
    assert "128, padded with zeros from 100" in card
