"""What must hold of any checkpoint, however the work is divided."""

import json

import mlx.core as mx
import numpy as np
import pytest

import jvlm_mlx
from jvlm_mlx.config.config_reader import ConfigReader
from jvlm_mlx.config.model_config import ModelConfig
from jvlm_mlx.model.windows import plan_windows, window_patches

# The same sums in another order: blocks of another size in matrix products.
ROUNDING = 5e-5


def close(found, expected, tolerance=ROUNDING):
    return np.abs(np.array(found) - np.array(expected)).max() < tolerance


def test_cached_and_chunked_prefill_equal_whole(tiny, named_case):
    model, processor = tiny
    inputs = named_case("two_images").inputs(processor)
    whole = model(**inputs)
    embeddings = model.embed(
        inputs.input_ids,
        pixel_values=inputs.pixel_values,
        image_masks=inputs.image_masks,
        image_input_idx=inputs.image_input_idx,
    )
    length = embeddings.shape[1]
    for chunk in (1, 7, 100, length):
        cache = model.make_cache()
        parts = [
            model(
                inputs.input_ids[:, start : start + chunk],
                input_embeddings=embeddings[:, start : start + chunk],
                cache=cache,
            )
            for start in range(0, length, chunk)
        ]
        assert close(mx.concatenate(parts, axis=1), whole)
        assert cache[0].offset == length


def test_prompts_of_a_batch_equal_single_prompts(tiny, named_case):
    model, processor = tiny
    case = named_case("batch")
    batch = case.inputs(processor)
    logits = np.array(model(**batch))
    for row, (text, images) in enumerate(zip(case.texts, case.images, strict=True)):
        single = processor(text=[text], images=[images])
        assert close(logits[row, batch.attention_mask[row]], model(**single)[0])


def test_tile_groups_of_any_size_give_the_same_features(tiny, named_case):
    model, processor = tiny
    inputs = named_case("batch").inputs(processor)
    arguments = inputs.pixel_values, inputs.image_masks, inputs.image_input_idx
    reference = model.encode_images(*arguments, tile_group_size=100)
    assert len(reference) == np.count_nonzero(inputs.image_input_idx >= 0)
    for size in (1, 2, 5):
        assert close(model.encode_images(*arguments, tile_group_size=size), reference)


def test_filling_of_a_batch_is_not_computed(tiny, named_case):
    model, processor = tiny
    inputs = named_case("batch").inputs(processor)
    plan = model.plan(inputs.image_input_idx, inputs.input_ids.shape[1], 1)
    # 2 tiles of the square, none for the text, and 2 + 11 for the dot and the wide image.
    assert len(plan.groups) == sum(layout.num_tiles for row in inputs.layouts for layout in row)


def test_forward_pass_never_waits_for_the_device(tiny, named_case, monkeypatch):
    model, processor = tiny
    inputs = named_case("two_images").inputs(processor)
    evaluations = []
    monkeypatch.setattr(mx, "eval", lambda *_: evaluations.append("eval"))
    monkeypatch.setattr(mx, "async_eval", lambda *_: evaluations.append("async_eval"))
    monkeypatch.setattr(mx, "synchronize", lambda *_: evaluations.append("synchronize"))
    # `.item()`, `.tolist()`, `bool()`, `numpy.array()` cannot be replaced on the class. All of
    # them raise inside a function that is being transformed, where no value exists.
    embeddings = model.decoder.embed(mx.array(inputs.input_ids))

    def forward(pixel_values):
        return model(
            inputs.input_ids,
            pixel_values=pixel_values,
            image_masks=inputs.image_masks,
            image_input_idx=inputs.image_input_idx,
            attention_mask=inputs.attention_mask,
            cache=model.make_cache(),
        )

    traced = mx.compile(forward)
    logits = traced(mx.array(inputs.pixel_values))
    decode = mx.compile(lambda ids: model(ids, cache=model.make_cache()))
    step = decode(mx.array([[3]]))
    monkeypatch.undo()
    assert evaluations == []
    assert logits.shape[:2] == embeddings.shape[:2]
    assert step.shape == (1, 1, model.config.decoder.vocab_size)


def test_bfloat16_stays_bfloat16(golden_folder, named_case):
    model, processor = jvlm_mlx.load(golden_folder / "tiny", dtype="bfloat16")
    inputs = named_case("shapes").inputs(processor)
    pixels = mx.array(inputs.pixel_values[0])
    assert all(state.dtype == mx.bfloat16 for state in model.vision_tower.hidden_states(pixels))
    features = model.encode_images(inputs.pixel_values, inputs.image_masks, inputs.image_input_idx)
    assert features.dtype == mx.bfloat16
    cache = model.make_cache()
    logits = model(**inputs, cache=cache)
    assert logits.dtype == mx.bfloat16
    assert {cache[0].keys.dtype, cache[-1].values.dtype} == {mx.bfloat16}
    # Eight bits of mantissa: the same image, coarser.
    expected = named_case("shapes").expected["logits"]
    assert np.abs(np.array(logits[:, -8:].astype(mx.float32)) - expected).max() < 0.5


def test_black_tiles_are_treated_as_padding(tiny):
    model, _ = tiny
    tower = model.config.tower
    pixels = mx.full((2, tower.num_patches, tower.patch_values), -1.0)
    pixels[1, 0, 0] = -0.99
    features = model.vision_tower(pixels)
    assert not mx.any(features[0]).item()
    assert mx.any(features[1]).item()


def test_merge_adds_each_feature_once_and_nothing_else(tiny):
    model, _ = tiny
    embeddings = mx.random.normal((2, 5, 64), key=mx.random.key(0))
    features = mx.random.normal((3, 64), key=mx.random.key(1))
    sources = np.array([[-1, 2, -1, 0, -1], [-1, -1, -1, 1, -1]])
    merged = np.array(model.merge(embeddings, features, sources))
    expected = np.array(embeddings)
    for row, column, source in ((0, 1, 2), (0, 3, 0), (1, 3, 1)):
        expected[row, column] += np.array(features)[source]
    np.testing.assert_array_equal(merged, expected)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_tokens_without_a_feature_keep_every_bit(tiny, dtype):
    model, _ = tiny
    embeddings = mx.random.normal((1, 4, 64), key=mx.random.key(0)).astype(dtype)
    embeddings = mx.where(embeddings < 0, mx.array(-0.0, dtype), embeddings)
    features = mx.random.normal((2, 64), key=mx.random.key(1))
    merged = model.merge(embeddings, features, np.array([[-1, 1, -1, -1]]))
    assert merged.dtype == dtype
    bits = mx.uint32 if dtype == mx.float32 else mx.uint16
    same = np.array(merged.view(bits) == embeddings.view(bits))[0]
    assert same.all(axis=-1).tolist() == [True, False, True, True]
    assert mx.array_equal(merged[0, 1], embeddings[0, 1] + features[1].astype(dtype)).item()


def test_gradients_of_a_merge_go_where_the_features_went(tiny):
    model, _ = tiny
    embeddings, features = mx.zeros((2, 3, 64)), mx.ones((4, 64))
    sources = np.array([[-1, 2, 0], [3, -1, -1]])
    weights = mx.random.normal(embeddings.shape, key=mx.random.key(0))

    def loss(embeddings, features):
        return mx.sum(weights * model.merge(embeddings, features, sources))

    of_embeddings, of_features = mx.grad(loss, (0, 1))(embeddings, features)
    assert mx.array_equal(of_embeddings, weights).item()
    # The second feature reaches no token, and tokens without a feature pull at none.
    expected = mx.stack([weights[0, 2], mx.zeros(64), weights[0, 1], weights[1, 0]])
    assert mx.array_equal(of_features, expected).item()


def test_window_patches_of_an_odd_grid():
    patches, inside = window_patches((3, 3), (2, 2))
    np.testing.assert_array_equal(
        np.where(inside, patches, -1),
        [[0, 1, 3, 4], [2, -1, 5, -1], [6, 7, -1, -1], [8, -1, -1, -1]],
    )


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([[[0, 9, -1, -1]]], "token 9 of 5"),
        ([[[2, 2, -1, -1]]], "two image features are for one token"),
        ([[[0, 1, 2]]], "3 windows"),
    ],
)
def test_impossible_positions_are_refused(positions, message):
    with pytest.raises(ValueError, match=message):
        plan_windows(np.array(positions), 5, (3, 3), (2, 2), 4)


def test_padding_on_the_right_is_refused(tiny):
    with pytest.raises(ValueError, match="left-padded"):
        tiny[0](np.array([[1, 2, 3]]), attention_mask=np.array([[True, True, False]]))


def test_padding_needs_a_cache_that_has_it(tiny):
    model, _ = tiny
    mask = np.array([[False, True]])
    with pytest.raises(ValueError, match="make_cache"):
        model(np.array([[-1, 2]]), attention_mask=mask, cache=model.make_cache())


def test_a_decode_step_copies_no_embedding_table(tiny):
    model, _ = tiny
    assert model.decoder.embedding.weight.shape == (528, 64)
    cache = model.make_cache()
    mx.eval(model(np.array([[1, 2, 3]]), cache=cache))
    logits = model(np.array([[4]]), cache=cache)
    table = model.decoder.embedding.weight.nbytes
    mx.eval(model.parameters())
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(logits)
    assert mx.get_peak_memory() - before < table


def encoding_peak(model, tiles):
    """Return how many bytes encoding takes beyond its pixels and what it gives back."""
    tower = model.config.tower
    pixels = np.zeros((1, tiles, tower.num_patches, tower.patch_values), np.float32)
    masks = np.ones(pixels.shape[:3], np.int8)
    windows = np.arange(tiles * 14 * 14).reshape(1, tiles, -1)
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    features = model.encode_images(pixels, masks, windows, tile_group_size=1)
    mx.eval(features)
    return mx.get_peak_memory() - before - features.nbytes - pixels.nbytes


def test_peak_memory_does_not_grow_with_the_number_of_tiles(golden_folder):
    """With as many patches as the released tower, attention scores outweigh everything else."""
    config = json.loads((golden_folder / "tiny" / "config.json").read_text())
    config["vision_config"].update(input_size=[378, 378], n_layers=3, vit_layers=[-2, -3])
    model = jvlm_mlx.Model(ModelConfig.read(ConfigReader(config, "config.json")))
    mx.eval(model.parameters())
    assert encoding_peak(model, 6) < 1.5 * encoding_peak(model, 2)
