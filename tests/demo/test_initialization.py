"""The demo before its training: the release's architecture, and weights that can learn."""

from random import Random

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

import jvlm_mlx
from benchmarks.demo_model.initialization import write_initialized
from benchmarks.demo_model.synthetic_tiles import make_synthetic_tile, patches_of
from jvlm_mlx.demo.phrases import LANGUAGES, PHRASES
from jvlm_mlx.demo.tasks import TASKS, make_example


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_initialized(tmp_path_factory.mktemp("demo") / "initialized", 0)


@pytest.fixture(scope="module")
def demo(folder):
    return jvlm_mlx.load(folder)


def test_it_is_built_like_the_release(demo):
    model, processor = demo
    tower, connector = model.config.tower, model.config.connector
    decoder = model.config.decoder
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
    assert not model.config.tie_word_embeddings
    assert processor.tokenizer.image_token_ids.patch >= decoder.vocab_size


def test_the_same_seed_gives_the_same_bytes(folder, tmp_path):
    again, other = write_initialized(tmp_path / "a", 0), write_initialized(tmp_path / "b", 1)
    for file in folder.iterdir():
        same = file.read_bytes() == (again / file.name).read_bytes()
        assert same, file.name
    weights = "model.safetensors"
    assert (other / weights).read_bytes() != (folder / weights).read_bytes()


def test_images_reach_the_decoder_at_the_size_of_its_tokens(demo):
    """So that they matter from the first step on."""
    model, processor = demo
    example = make_example("color", "en", Random(0))
    inputs = processor("?", [example.image])
    features = model.encode_images(inputs.pixel_values, inputs.image_masks, inputs.image_input_idx)
    tokens = mx.sqrt(mx.square(model.decoder.embedding.weight).mean()).item()
    differences = mx.sqrt(mx.var(features, axis=0).mean()).item()
    assert 1 < differences / tokens < 20


def test_white_paper_is_nothing(demo):
    model, _ = demo
    patch = model.vision_tower.patch_embedding
    # A sum of 192 products of numbers up to 4.
    np.testing.assert_allclose(patch(mx.ones((1, 192))), np.zeros((1, 128)), atol=1e-4)


@pytest.fixture(scope="module")
def printed_page():
    """(1, P, V): a page with something everywhere."""
    return mx.array(patches_of([make_synthetic_tile(Random(4))]))


@pytest.mark.parametrize(
    ("layer", "head", "down", "right"),
    [(0, 0, 0, 1), (0, 1, 0, -1), (0, 2, 1, 0), (1, 3, -1, 0), (2, 0, 1, 1), (2, 3, -1, 1)],
)
def test_heads_look_at_neighbors(demo, printed_page, layer, head, down, right):
    model, _ = demo
    tower = model.vision_tower
    x = tower.patch_embedding(printed_page) + tower.position_embedding
    for before in tower.layers[:layer]:
        x = before(x)
    block = tower.layers[layer]
    # (1, P, 3 H D) -> (P, 3, H, D) -> (P, 2, D): queries and keys of one head
    projected = np.array(block.attention.qkv(block.attention_norm(x)))
    looking = projected.reshape(81, 3, 4, 32)[:, :2, head]
    seen = (looking[:, 0] @ looking[:, 1].T).argmax(axis=1)
    inner = [row * 9 + column for row in range(1, 8) for column in range(1, 8)]
    expected = np.array(inner) + 9 * down + right
    # What is printed disturbs it; by chance it would be one in 81.
    assert (seen[inner] == expected).mean() > 0.4


def test_heads_of_the_pooling_look_at_one_patch_each(demo, printed_page):
    model, _ = demo
    pooling = model.connector.pooling
    features = np.array(model.vision_tower(printed_page)).reshape(9, 9, -1)
    for row, column in ((0, 0), (2, 4), (6, 2)):
        window = mx.array(features[row : row + 2, column : column + 2].reshape(1, 4, -1))
        queries = np.array(pooling.q(window.mean(axis=1))).reshape(4, 32)
        keys = np.array(pooling.kv(window))[0].reshape(4, 2, 4, 32)[:, 0]
        for head in range(4):
            assert (keys[:, head] @ queries[head]).argmax() == head


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
            [example.image or Image.new("RGB", (72, 72))],
            max_tokens=1,
        )
        assert result.generation_tokens == 1
