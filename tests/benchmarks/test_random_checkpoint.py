"""The random checkpoints that tests and benchmarks use: whole, repeatable and sensible."""

import json

import mlx.core as mx
import numpy as np
import pytest

from benchmarks.random_checkpoint import (
    RELEASED,
    random_tensors,
    released_config,
    small_config,
    write_config,
    write_random_checkpoint,
)
from jvlm_mlx.checkpoint.loader import load_processor, read_config
from tests.helpers.converting import names_of, write_grouped


def test_a_random_checkpoint_has_the_released_tensors():
    found = {output.name: list(output.shape) for output, _ in random_tensors(released_config())}
    assert len(found) == 705
    assert found == json.loads((RELEASED / "tensors.json").read_text())


def test_a_quarter_of_the_layers():
    config = released_config(0.25)
    names = {output.name for output, _ in random_tensors(config)}
    assert "model.language_model.layers.6.ffn.up.weight" in names
    assert "model.language_model.layers.7.ffn.up.weight" not in names
    assert config["vision_config"]["n_layers"] == 7


def test_a_random_checkpoint_is_what_its_seed_says(tmp_path):
    options = {"dtype": "bfloat16", "max_shard_bytes": 200_000}
    folders = [
        write_random_checkpoint(tmp_path / str(number), small_config(), seed=seed, **options)
        for number, seed in enumerate((0, 0, 1))
    ]
    contents = [
        b"".join(file.read_bytes() for file in sorted(folder.glob("*.safetensors")))
        for folder in folders
    ]
    assert contents[0] == contents[1] != contents[2]


def test_random_weights_keep_the_scale_of_what_goes_through_them(tmp_path):
    folder = write_grouped(tmp_path / "source")
    weights = mx.load(str(folder / "model.safetensors"))
    head = weights["lm_head.weight"]
    # 32,768 samples: their deviation is within a percent or two.
    assert mx.std(head).item() == pytest.approx(64**-0.5, rel=0.03)
    assert mx.mean(weights["model.language_model.ln_f.weight"]).item() == pytest.approx(1, abs=0.05)
    assert not mx.any(weights["model.language_model.layers.0.attn.q_b"]).item()


def test_the_existing_layout_is_that_of_the_existing_conversion(golden_folder):
    found = {output.name for output, _ in random_tensors(small_config(), layout="mlx")}
    assert found == names_of(golden_folder / "tiny-mlx")


@pytest.fixture(scope="module")
def released_processor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("released")
    write_config(folder, released_config())
    return load_processor(folder, read_config(folder))


def test_images_have_the_released_token_ids(released_processor):
    image = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    inputs = released_processor(text=["<|image|>What is this?"], images=[[image]])
    ids = inputs.input_ids[0]
    assert ids[0] == 151643
    assert set(ids[ids >= 151936].tolist()) == {151936, 151937, 151938, 151939}
    assert inputs.pixel_values.shape[2:] == (729, 588)
    assert released_processor.tokenizer.stop_token_ids == {151643, 151645}


def test_every_token_of_the_vocabulary_has_a_text(released_processor):
    tokens = [500, 20_000, 151_642, 151_646, 151_935]
    texts = [released_processor.decode([token]) for token in tokens]
    assert all(texts)
    assert len(set(texts)) == len(tokens)
    # Made-up words are for answers: no text is ever split into them.
    ids = released_processor(text=["".join(texts)]).input_ids[0]
    assert ids.max() == 151643
    assert sorted(ids)[-2] < 412
