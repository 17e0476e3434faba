"""Numbers that are too large for float16, or no numbers, never become an answer."""

import mlx.core as mx
import pytest

import jvlm_mlx
from jvlm_mlx import CheckpointError, encode_image, generate
from jvlm_mlx.generation import device

OPTIONS = {"max_tokens": 4, "stop_token_ids": ()}


@pytest.fixture
def image(golden_folder):
    return golden_folder / "images" / "dot.png"


@pytest.fixture
def load(golden_folder):
    return lambda dtype=None: jvlm_mlx.load(golden_folder / "tiny", dtype=dtype)


def enlarge(module):
    """Make a linear layer's weights as large as float16 can hold, so that its outputs are not."""
    weight = module.weight.astype(mx.float32)
    module.weight = (weight * (6e4 / mx.abs(weight).max())).astype(mx.float16)


def test_an_overflow_of_the_tower_is_repaired(load, image, caplog):
    model, processor = load("float16")
    enlarge(model.connector.projector.down)
    features = encode_image(model, processor, image).features
    assert mx.isfinite(features).all().item()
    assert "vision tower and connector overflowed in float16; from now on" in caplog.text

    assert model.dtype == mx.float16
    caplog.clear()
    encode_image(model, processor, image)
    assert caplog.text == ""  # said once


def test_an_overflow_of_the_decoder_is_repaired(load, caplog):
    model, processor = load("float16")
    enlarge(model.decoder.layers[0].mlp.down)
    caches = jvlm_mlx.GenerationCaches()
    for _ in range(2):
        result = generate(model, processor, "Hi", caches=caches, **OPTIONS)
        assert len(set(result.token_ids)) > 0
        assert model.dtype == mx.bfloat16
    assert caplog.text.count("overflowed in float16") == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damaged_weights_are_refused_in_one_line(load, image, value):
    model, processor = load()
    weight = model.vision_tower.layers[0].mlp.up.weight
    weight[0, 0] = value
    with pytest.raises(CheckpointError, match=r"tower and connector .* not finite") as caught:
        generate(model, processor, "What?", image, **OPTIONS)
    assert "\n" not in str(caught.value)
    generate(model, processor, "Hi", **OPTIONS)
    model.decoder.norm.weight = model.decoder.norm.weight * value
    with pytest.raises(CheckpointError, match=r"decoder and head .* not finite"):
        generate(model, processor, "Hi", **OPTIONS)
    (response,) = jvlm_mlx.batch_generate(model, processor, [{"prompt": "Hi"}])
    assert "not finite" in response.error


def test_looking_for_them_takes_no_wait_of_its_own(load, monkeypatch):
    """The whole prompt is one wait: for logits, the KV cache and whether all is finite."""
    waits, evaluate = [], mx.eval

    def watched(*arrays):
        if device.on_worker():
            waits.append(arrays)
        evaluate(*arrays)

    model, processor = load()
    monkeypatch.setattr(mx, "eval", watched)
    generate(model, processor, "Hi", max_tokens=1, stop_token_ids=())
    assert len(waits) == 1
    assert any(isinstance(one, mx.array) and one.dtype == mx.bool_ for one in waits[0])
