"""What the model can be called with: arrays of any kind, and only the logits that are wanted."""

from unittest import mock

import mlx.core as mx
import numpy as np
import pytest

from jvlm_mlx.model.layers import Block

KINDS = {
    "numpy": np.asarray,
    "mlx": mx.array,
    "list": lambda array: array.tolist(),
    "int64": lambda array: array.astype(np.int64) if array.dtype == np.int32 else array,
}


@pytest.fixture
def inputs(tiny, named_case):
    found = named_case("batch").inputs(tiny[1])
    assert not found.attention_mask.all()
    return dict(found)


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_any_kind_are_the_same_input(tiny, inputs, kind):
    model, _ = tiny
    expected = model(**inputs)
    converted = {name: KINDS[kind](array) for name, array in inputs.items()}
    assert mx.array_equal(model(**converted), expected)
    cache = model.make_cache(converted["attention_mask"])
    cached = model(**converted, cache=cache)
    real = inputs["attention_mask"]
    # Padding is masked in another way, so sums have other zeros among them.
    assert np.abs(np.array(cached)[real] - np.array(expected)[real]).max() < 1e-4


def test_images_are_pixel_values_by_another_name(tiny, inputs):
    model, _ = tiny
    expected = model(**inputs)
    inputs["images"] = inputs.pop("pixel_values")
    assert mx.array_equal(model(**inputs), expected)
    with pytest.raises(ValueError, match="images and pixel_values are the same"):
        model(**inputs, pixel_values=inputs["images"])


@pytest.mark.parametrize("count", [1, 3])
def test_only_the_last_logits_are_computed_on_request(tiny, inputs, count):
    model, _ = tiny
    expected = model(**inputs)[:, -count:]
    lengths, whole = [], type(model).head

    def head(self, hidden):
        lengths.append(hidden.shape[1])
        return whole(self, hidden)

    with mock.patch.object(type(model), "head", head):
        found = model(**inputs, logits_to_keep=count)
    assert lengths == [count]
    assert found.shape == expected.shape
    # One row of a product of matrices is summed in another order than many.
    assert np.abs(np.array(found) - np.array(expected)).max() < 1e-4


def test_a_prompt_passes_every_layer_once(tiny, named_case):
    """As generation needs it: the prompt's last logits without a second pass."""
    model, processor = tiny
    inputs = named_case("shapes").inputs(processor)
    calls = []
    whole = Block.__call__

    def counted(self, x, *others):
        calls.append(x.shape[1])
        return whole(self, x, *others)

    embeddings = model.embed(**{k: v for k, v in dict(inputs).items() if k != "attention_mask"})
    with mock.patch.object(Block, "__call__", counted):
        hidden = model.decoder(embeddings, model.make_cache())
        logits = model.head(hidden[:, -1:])
    assert calls == [embeddings.shape[1]] * len(model.layers)
    assert logits.shape == (1, 1, model.config.decoder.vocab_size)
    assert np.abs(np.array(logits - model(**inputs)[:, -1:])).max() < 1e-4
