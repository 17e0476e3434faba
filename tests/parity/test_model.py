"""The ladder: every stage of the model against the reference implementation, in float32.

Tolerances: the reference implementation ran in float32 on another matrix library, so sums are taken
in another order. Values reach 10 and are sums of up to a few hundred products; differences of
single steps are near 1e-6 and grow through eleven layers. A wrong layer, mask row, window, gate
order or position moves values by more than 1e-2 (tried for each by breaking it).
"""

import mlx.core as mx
import numpy as np
import pytest

import jvlm_mlx

HIDDEN = 5e-5  # eleven tower layers, values up to 10
FEATURES = 2e-4  # two more matrix products and a gate on top of that
LOGITS = 2e-4  # three decoder layers and the head on top


def largest_difference(found, expected):
    found = np.array(found)
    assert found.shape == expected.shape
    return np.abs(found - expected).max()


def all_windows(model, inputs):
    """Plan every window of every tile, dropped ones too, as the goldens list them."""
    batch, tiles, windows = inputs.image_input_idx.shape
    everything = np.arange(batch * tiles * windows).reshape(1, batch * tiles, windows)
    return model.plan(everything, everything.size, tile_group_size=batch * tiles)


def flattened(inputs):
    """Return all tiles of a batch and their masks, (B T, P, V) and (B T, P)."""
    pixels, masks = inputs.pixel_values, inputs.image_masks
    return mx.array(pixels.reshape(-1, *pixels.shape[2:])), masks.reshape(-1, masks.shape[-1])


def test_tower_layers(tiny, image_case):
    model, processor = tiny
    pixels, _ = flattened(image_case.inputs(processor))
    states = model.vision_tower.hidden_states(pixels)
    for index, state in enumerate(states):
        # The reference implementation sets the features of padding to zero only after the tower.
        chosen = state[mx.array([0, 1, len(pixels) - 1])]
        expected = image_case.expected[f"vit_layer_{index}"]
        assert largest_difference(chosen, expected) < HIDDEN


def test_pooled_vectors_and_features(tiny, image_case):
    model, processor = tiny
    inputs = image_case.inputs(processor)
    pixels, masks = flattened(inputs)
    (group,) = all_windows(model, inputs).groups
    features = model.vision_tower(pixels)
    arguments = (features, mx.array(masks), mx.array(group.patches), mx.array(group.inside))
    expected = image_case.expected
    # (B T W, D) -> (B, T, W, D)
    pooled = model.connector.pool(*arguments).reshape(expected["pooled"].shape)
    assert largest_difference(pooled, expected["pooled"]) < FEATURES
    projected = model.connector(*arguments).reshape(expected["image_features"].shape)
    assert largest_difference(projected, expected["image_features"]) < FEATURES


def test_merged_embeddings(tiny, case):
    model, processor = tiny
    inputs = case.inputs(processor)
    embeddings = model.embed(
        inputs.input_ids,
        pixel_values=inputs.pixel_values,
        image_masks=inputs.image_masks,
        image_input_idx=inputs.image_input_idx,
    )
    real = inputs.attention_mask
    assert largest_difference(np.array(embeddings)[real], case.expected["inputs_embeds"][real]) < (
        FEATURES
    )


def test_logits(tiny, case):
    model, processor = tiny
    logits = model(**case.inputs(processor))
    real = case.expected["attention_mask"][:, -8:]
    found = np.array(logits[:, -8:])
    assert largest_difference(found[real], case.expected["logits"][real]) < LOGITS


def greedy(model, inputs, steps):
    """Decode a whole batch with a cache; return tokens (B, N) and their logits (B, N, V)."""
    cache = model.make_cache(inputs.attention_mask)
    logits = model(**inputs, cache=cache)[:, -1:]
    tokens, scores = [], []
    for _ in range(steps):
        scores.append(np.array(logits))
        tokens.append(scores[-1].argmax(-1))
        logits = model(tokens[-1], cache=cache)
    return np.concatenate(tokens, 1), np.concatenate(scores, 1)


def test_greedy_tokens(tiny, case):
    model, processor = tiny
    expected = case.expected["greedy_tokens"]
    tokens, logits = greedy(model, case.inputs(processor), expected.shape[1])
    np.testing.assert_array_equal(tokens, expected)
    assert largest_difference(logits, case.expected["greedy_logits"]) < LOGITS


@pytest.mark.parametrize("layout", ["tiny-mlx", "tiny-mlx-4bit"])
def test_existing_mlx_layout(golden_folder, named_case, layout):
    model, processor = jvlm_mlx.load(golden_folder / layout)
    case = named_case("shapes")
    expected = case.expected["logits"]
    if layout == "tiny-mlx-4bit":
        expected = np.load(golden_folder / layout / "shapes-logits.npz")["logits"]
    found = np.array(model(**case.inputs(processor))[:, -8:])
    assert largest_difference(found, expected.reshape(found.shape)) < LOGITS


def test_existing_mlx_layout_is_the_same_model(tiny, golden_folder, named_case):
    converted, _ = jvlm_mlx.load(golden_folder / "tiny-mlx")
    inputs = named_case("two_images").inputs(tiny[1])
    assert mx.array_equal(converted(**inputs), tiny[0](**inputs))
