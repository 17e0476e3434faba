"""`inspect`, and plans at the released geometry: right figures without a weight being read."""

import json
import os
import shutil

import huggingface_hub
import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import save_file

import jvlm_mlx
from benchmarks.random_checkpoint import (
    RELEASED,
    random_tensors,
    released_config,
    write_config,
)
from jvlm_mlx.checkpoint.reader import CheckpointFiles
from jvlm_mlx.checkpoint.writer import ShardWriter
from jvlm_mlx.cli.conversion_report import inspection_json, inspection_text
from jvlm_mlx.conversion.converter import convert
from jvlm_mlx.conversion.inspection import inspect
from jvlm_mlx.errors import CheckpointError
from tests.helpers.converting import edit_config


@pytest.fixture
def no_reading(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("weights are read")

    monkeypatch.setattr(mx, "load", refuse)
    monkeypatch.setattr(CheckpointFiles, "rows", refuse)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The released geometry as a file of holes: all tensors are there, and zero."""
    folder = tmp_path_factory.mktemp("released")
    config = released_config()
    outputs = [output for output, _ in random_tensors(config)]
    with ShardWriter(folder, [outputs]):
        pass
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size + sum(output.nbytes for output in outputs))
    write_config(folder, config)
    return folder


def test_the_released_geometry(released, no_reading):
    inspection = inspect(released)
    assert inspection.layout == "original"
    weights = {module.name: module.weights for module in inspection.modules}
    # The tower's last two layers and its final norm are not counted: they are never loaded.
    whole = json.loads((RELEASED / "tensors.json").read_text())
    tower = sum(
        _size(shape) for name, shape in whole.items()
        if ".vision_model." in name and "vl_connector" not in name
    )  # fmt: skip
    unused = sum(
        _size(shape) for name, shape in whole.items()
        if is_unused(name)
    )  # fmt: skip
    assert tower == pytest.approx(413e6, abs=1e6)
    assert weights["tower"] == tower - unused
    assert round(weights["connector"] / 1e6) == 36
    assert round(weights["decoder"] / 1e6) == 1409
    assert weights["embedding"] == 152_064 * 2048
    assert weights["head"] == 151_936 * 2048
    assert inspection.bits_per_weight == 16
    assert inspection.missing == 0
    # The KV cache of 28 layers with 8 heads of 128, two bytes each.
    assert inspection.cache_bytes == 1000 * 28 * 2 * 8 * 128 * 2
    biases = 28 * 4096 * 2
    assert inspection.unused_bytes == 2 * unused + biases
    text = inspection_text(inspection)
    assert "memory when loaded: 4.90 GB" in text
    assert "KV cache for 1,000 tokens: 115 MB" in text


def _size(shape):
    count = 1
    for side in shape:
        count *= side
    return count


def expected_bytes(bits, group_size, scale_bytes, mlp_size):
    """Bytes of a conversion, from the list of released tensors; `bits` tells those by name."""
    total = 0
    for name, (*rows, columns) in json.loads((RELEASED / "tensors.json").read_text()).items():
        if is_unused(name) or (".language_model." in name and name.endswith(("q_b", "k_b", "v_b"))):
            continue
        if ".vision_model.layers." in name and ".ffn." in name:
            columns = mlp_size if columns == 4304 else columns
            rows = [mlp_size if row == 4304 else row for row in rows]
        values = _size([*rows, columns])
        stays = not rows or name.endswith(("pos_embed", "pad_embed", "patch_embed.proj.weight"))
        if stays or bits(name) is None:
            total += 2 * values
        else:
            total += values * bits(name) // 8 + values // group_size * scale_bytes
    return total


def is_unused(name):
    return any(f"vision_model.{one}." in name for one in ("layers.25", "layers.26", "post_lnorm"))


def mixed_bits(name):
    much = ("lm_head", "vl_connector", "language_model.layers.0.", "language_model.layers.27.")
    return 6 if any(one in name for one in much) else 4


@pytest.mark.parametrize(
    ("options", "expected", "mlp_size"),
    [
        ({}, (lambda _: None, 1, 0), 4304),
        ({"quantize": True}, (lambda _: 4, 64, 4), 4352),
        ({"quantize": True, "recipe": "mixed"}, (mixed_bits, 64, 4), 4352),
        ({"quantize": True, "recipe": "language-only"},
         (lambda name: None if "vision" in name else 4, 64, 4), 4304),
        ({"quantize": True, "q_group_size": 32}, (lambda _: 4, 32, 4), 4320),
        ({"quantize": True, "q_group_size": 128, "q_bits": 3}, (lambda _: 3, 128, 4), 4352),
        ({"quantize": True, "q_mode": "nvfp4"}, (lambda _: 4, 16, 1), 4304),
    ],
)  # fmt: skip
def test_plans_for_the_released_geometry(released, options, expected, mlp_size):
    plan = convert(released, dry_run=True, **options).plan
    assert plan.unfit == ()
    assert plan.mlp_size == mlp_size
    assert sum(plan.output_bytes.values()) == expected_bytes(*expected, mlp_size)
    assert plan.values == {module.name: module.weights for module in inspect(released).modules}
    # Two layers of the tower with 14 tensors each, its final norm, and the decoder's biases.
    assert len(plan.dropped) == 2 * 14 + 2 + 28 * 3


def test_a_conversion_of_this_project(grouped, tmp_path):
    convert(grouped, tmp_path / "out", quantize=True, q_group_size=32, recipe="mixed")
    inspection = inspect(tmp_path / "out")
    modules = {module.name: module for module in inspection.modules}
    assert modules["connector"].formats == ("F32", "affine 6 bits / 32")
    assert modules["decoder"].formats == ("F32", "affine 4 bits / 32", "affine 6 bits / 32")
    # Padding is not counted as weights: the same model has the same number of them.
    assert inspection.weights == inspect(grouped).weights
    size = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    assert 0 < size - inspection.bytes < 30_000


def test_the_existing_conversion(golden_folder, no_reading):
    inspection = inspect(golden_folder / "tiny-mlx-4bit")
    assert inspection.layout == "mlx"
    assert inspection.missing == 0
    assert {module.name: module.formats for module in inspection.modules}["head"] == (
        "affine 4 bits / 32",
    )
    assert inspection.weights == inspect(golden_folder / "tiny").weights


def test_a_single_shard(grouped, no_reading):
    file = sorted(grouped.glob("*.safetensors"))[0]
    inspection = inspect(file)
    assert inspection.files == 1
    assert inspection.missing > 0
    assert f"missing here: {inspection.missing} tensors" in inspection_text(inspection)
    total = sum(inspect(shard).bytes for shard in grouped.glob("*.safetensors"))
    assert total == inspect(grouped).bytes


def test_a_file_alone(grouped, tmp_path):
    convert(grouped, tmp_path / "out", quantize=True, q_group_size=32)
    (tmp_path / "alone").mkdir()
    file = tmp_path / "alone" / "weights.safetensors"
    (tmp_path / "out" / "model.safetensors").rename(file)
    inspection = inspect(file)
    assert inspection.weights is None
    assert inspection.cache_bytes is None
    assert {module.name: module.weights for module in inspection.modules}["head"] is None
    assert "?" in inspection_text(inspection)
    assert json.loads(json.dumps(inspection_json(inspection)))["layout"] == "own"


def test_the_demo_and_a_repository(grouped, monkeypatch):
    model, _ = jvlm_mlx.load("demo")
    assert inspect("demo").weights == sum(
        array.size for _, array in tree_flatten(model.parameters())
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(grouped))
    assert inspect("someone/jina-vlm").modules == inspect(grouped).modules


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="there is no folder"):
        inspect(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="cannot be looked up"):
        inspect("~nobody-here/x")
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="holds no Jina-VLM"):
        inspect(tmp_path / "other.safetensors")


@pytest.mark.parametrize("single", [True, False])
def test_absurd_numbers_of_layers_are_refused(grouped, tmp_path, single):
    """Their names alone would take forever."""
    folder = tmp_path / "copy"
    shutil.copytree(grouped, folder)
    edit_config(folder, lambda config: config["text_config"].update(n_layers=10**9))
    with pytest.raises(CheckpointError, match=r"text_config\.n_layers gives 1000000000, more than"):
        inspect(next(folder.glob("*.safetensors")) if single else folder)
