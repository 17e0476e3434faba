"""The demo before its training: the release's architecture, and weights that can learn."""

from random import Random

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

import jvlm_mlx
from jvlm_mlx.demo.phrases import LANGUAGES, PHRASES
from jvlm_mlx.demo.tasks import TASKS, make_example
from jvlm_mlx.demo.untrained import waves, write_untrained


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_untrained(tmp_path_factory.mktemp("demo") / "untrained", 0)


@pytest.fixture(scope="module")
def demo(folder):
    return jvlm_mlx.load(folder)


def test_it_is_built_like_the_release(demo):
    model, processor = demo
    tower, connector = model.settings.tower, model.settings.connector
    decoder = model.settings.decoder
    assert len(tower.feature_layers) == 2
    assert not tower.uses_final_norm
    assert all(side % 2 for side in tower.patch_grid)
    assert connector.pooling_size == (2, 2)
    assert connector.projector.gated
    attention = decoder.block.attention
    assert attention.num_key_value_heads < attention.num_attention_heads
    assert attention.q_norm
    assert attention.k_norm
    assert decoder.additional_vocab_size
    assert not model.settings.tie_word_embeddings
    assert processor.tokenizer.image_token_ids.patch >= decoder.vocab_size


def test_the_same_seed_gives_the_same_bytes(folder, tmp_path):
    again, other = write_untrained(tmp_path / "a", 0), write_untrained(tmp_path / "b", 1)
    for file in folder.iterdir():
        same = file.read_bytes() == (again / file.name).read_bytes()
        assert same, file.name
    weights = "model.safetensors"
    assert (other / weights).read_bytes() != (folder / weights).read_bytes()


def test_pictures_reach_the_decoder_at_the_size_of_its_tokens(demo):
    """So that they matter from the first step on."""
    model, processor = demo
    example = make_example("colour", "en", Random(0))
    inputs = processor("?", [example.picture])
    features = model.encode_images(inputs.pixel_values, inputs.image_masks, inputs.image_input_idx)
    tokens = mx.sqrt(mx.square(model.decoder.embedding.weight).mean()).item()
    differences = mx.sqrt(mx.var(features, axis=0).mean()).item()
    assert 1 < differences / tokens < 20


def test_white_paper_is_nothing(demo):
    model, _ = demo
    patch = model.vision_tower.patch_embedding
    # A sum of 192 products of numbers near 0.1.
    np.testing.assert_allclose(patch(mx.ones((1, 192))), np.zeros((1, 128)), atol=1e-5)


def test_waves_tell_neighbours_from_strangers():
    table = np.array(waves((9, 9), 128)).reshape(9, 9, 128)
    distances = np.linalg.norm(table - table[4, 4], axis=-1)
    assert distances[4, 4] == 0
    assert (distances[distances > 0] > 1).all()
    assert distances[4, 5] < distances[4, 7]
    np.testing.assert_allclose(distances, distances.T, rtol=1e-5)


@pytest.mark.parametrize("language", LANGUAGES)
def test_its_words_are_few_tokens(demo, language):
    _, processor = demo
    phrases = PHRASES[language]
    encode = processor.tokenizer.encode
    for question in (phrases.describe, phrases.number, phrases.word, phrases.count_objects):
        assert len(encode(f" {question}")) <= 16
    for noun in phrases.shapes.values():
        assert len(encode(f" {noun.name}")) <= 2


def test_every_task_can_be_asked(demo):
    model, processor = demo
    for task in TASKS:
        example = make_example(task, "de", Random(1))
        result = jvlm_mlx.generate(
            model,
            processor,
            example.turns[0].question,
            [example.picture or Image.new("RGB", (72, 72))],
            max_tokens=1,
        )
        assert result.generation_tokens == 1
