"""`verify`: figures that are right, bounds that count, and one model in memory at a time."""

import gc
import json
import shutil
import weakref
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jvlm_mlx
from jvlm_mlx.cli.conversion_report import verification_json, verification_text
from jvlm_mlx.conversion import verification as verify_module
from jvlm_mlx.conversion.converter import convert
from jvlm_mlx.conversion.outputs import Observation, Question, agreement, observe
from jvlm_mlx.conversion.verification import Bounds, update_card, verify
from jvlm_mlx.errors import CheckpointError, RequestError
from tests.helpers.converting import bytes_of, config_of, tensors_of, write_grouped

QUICK = {"prompts": ["What is this?"], "max_tokens": 4}


@pytest.fixture(scope="module")
def quantized(grouped, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized") / "out"
    convert(grouped, folder, quantize=True, q_group_size=32)
    return folder


@pytest.fixture(scope="module")
def verification(grouped, quantized, golden_folder):
    image = golden_folder / "images" / "square.png"
    return verify(grouped, quantized, images=[image], max_crops=1, max_tokens=6)


def test_a_lossless_conversion_differs_in_nothing(golden_folder, tmp_path):
    convert(golden_folder / "tiny", tmp_path / "out")
    result = verify(golden_folder / "tiny", tmp_path / "out", max_tokens=3, max_crops=1)
    assert set(result.weight_errors()) == {"tower", "connector", "decoder", "embedding", "head"}
    assert set(result.weight_errors().values()) == {0.0}
    assert [answer.name for answer in result.answers] == [
        "arithmetic", "explanation", "multilingual", "shapes", "page",
    ]  # fmt: skip
    for answer in result.answers:
        assert (answer.kl_max, answer.top1, answer.first_divergence) == (0.0, 1.0, None)
    # The cosine of a vector with itself, computed in float64.
    assert result.feature_cosine == pytest.approx(1, abs=1e-12)
    assert result.violations() == []


def test_weight_errors_are_those_of_the_rounded_weights(grouped, quantized, verification):
    source, out = tensors_of(grouped), tensors_of(quantized)
    head = np.array(source["lm_head.weight"])
    parts = [out[f"lm_head.{kind}"] for kind in ("weight", "scales", "biases")]
    rounded = np.array(mx.dequantize(*parts, group_size=32, bits=4))
    expected = np.linalg.norm(rounded - head) / np.linalg.norm(head)
    # Sums of squares in float32, block by block.
    assert verification.weight_errors()["head"] == pytest.approx(expected, rel=1e-5)
    # What conversion itself measures on every 32nd row is an estimate of the same; 16 rows of
    # the head are 1,024 rounded values.
    estimates = config_of(quantized)["jvlm_mlx"]["weight_error"]
    assert estimates == pytest.approx(verification.weight_errors(), rel=0.15)


def test_padding_and_dropped_biases_do_not_count(grouped, quantized, verification):
    by_path = {error.path: error.relative for error in verification.weights}
    assert by_path["vision_tower.layers.0.mlp.up.bias"] == 0
    assert by_path["vision_tower.position_embedding"] == 0
    assert 0.05 < by_path["vision_tower.layers.0.mlp.down.weight"] < 0.12


def test_quantization_shows_in_answers(verification):
    (answer,) = verification.answers
    assert 0 < answer.kl_mean <= answer.kl_max
    assert 0 < answer.feature_cosine_min <= answer.feature_cosine < 1
    assert answer.tokens == 6


def test_agreement_of_known_distributions():
    p, q = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.5, 0.3])
    expected = Observation((0, 0), np.log([p, p]), np.array([[1.0, 0.0], [0.0, 2.0]]))
    found = Observation((0, 1), np.log([p, q]), np.array([[3.0, 0.0], [1.0, 1.0]]))
    result = agreement("both", expected, found)
    divergence = float(np.sum(p * np.log(p / q)))
    # float64 arithmetic on a handful of numbers.
    assert result.kl_max == pytest.approx(divergence, rel=1e-12)
    assert result.kl_mean == pytest.approx(divergence / 2, rel=1e-12)
    assert (result.top1, result.first_divergence, result.tokens) == (0.5, 1, 2)
    assert result.feature_cosine == pytest.approx((1 + 0.5**0.5) / 2)
    assert result.feature_cosine_min == pytest.approx(0.5**0.5)


def test_a_model_that_follows_is_given_the_others_tokens(grouped, tmp_path):
    other = write_grouped(tmp_path / "other", seed=1)
    questions = [Question("one", "What is this?")]
    (first,) = observe(*jvlm_mlx.load(grouped), questions, max_tokens=5)
    model, processor = jvlm_mlx.load(other)
    (second,) = observe(model, processor, questions, max_tokens=9, follow=[first])
    assert second.tokens != first.tokens
    prompt = processor.from_messages([{"role": "user", "content": "What is this?"}]).input_ids
    ids = np.concatenate([prompt, [first.tokens[:-1]]], axis=1)
    logits = model(mx.array(ids))[0, -5:]
    expected = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    # One token at a time with a cache, or all at once: float32 sums in another order.
    np.testing.assert_allclose(second.logprobs, expected, atol=2e-5)
    assert second.tokens == tuple(expected.argmax(axis=-1))


def test_a_question_with_an_image_is_what_the_model_sees(grouped, golden_folder):
    model, processor = jvlm_mlx.load(grouped)
    image = golden_folder / "images" / "square.png"
    question = Question("image", "What is this?", image)
    (seen,) = observe(model, processor, [question], max_tokens=1, max_crops=1)
    inputs = processor.from_messages(
        [
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": question.prompt}],
            }
        ],
        images=[image],
        max_crops=1,
    )
    logits = model(**inputs)[0, -1]
    expected = np.array(logits - mx.logsumexp(logits))
    # With a cache or without: float32 sums in another order.
    np.testing.assert_allclose(seen.logprobs[0], expected, atol=2e-5)
    features = model.encode_images(inputs.pixel_values, inputs.image_masks, inputs.image_input_idx)
    np.testing.assert_allclose(seen.features, np.array(features), atol=2e-5)


def test_an_answer_ends_where_the_model_ends_it(grouped):
    model, processor = jvlm_mlx.load(grouped)
    question = Question("one", "What is this?")
    (whole,) = observe(model, processor, [question], max_tokens=6)
    assert len(whole.tokens) == 6
    stop = whole.tokens[2]
    processor.tokenizer.stop_token_ids = frozenset({stop})
    (ended,) = observe(model, processor, [question], max_tokens=6)
    assert ended.tokens == whole.tokens[: whole.tokens.index(stop) + 1]
    # The second continues as far as the first did.
    (followed,) = observe(model, processor, [question], max_tokens=6, follow=[whole])
    assert followed.tokens == whole.tokens


def test_a_model_that_always_disagrees(grouped, tmp_path):
    other = write_grouped(tmp_path / "other", seed=1)
    result = verify(grouped, other, prompts=["a", "b"], max_tokens=5)
    again = verify(other, grouped, prompts=["a", "b"], max_tokens=5)
    for one in (result, again):
        assert [answer.tokens for answer in one.answers] == [5, 5]
        assert one.top1 < 0.5
        # Logits of deviation 1 on both sides are about 1 nat apart.
        assert one.kl_mean > 0.3
    # Independent values of one deviation differ by twice their variance.
    assert result.weight_errors()["head"] == pytest.approx(2**0.5, rel=0.05)


def test_only_one_model_is_in_memory_at_a_time(grouped, quantized, monkeypatch):
    alive = []
    real = verify_module.load

    def load(*arguments, **options):
        gc.disable()  # so that only what verify does itself lets the first model go
        assert all(model() is None for model in alive)
        model, processor = real(*arguments, **options)
        alive.append(weakref.ref(model))
        return model, processor

    monkeypatch.setattr(verify_module, "load", load)
    try:
        verify(grouped, quantized, **QUICK)
    finally:
        gc.enable()
    assert len(alive) == 2


@pytest.mark.parametrize(
    ("bounds", "violation"),
    [
        ({"max_weight_error": 0.2, "max_kl": 9.0, "min_top1": 0.0, "min_cosine": 0.5}, None),
        ({"max_weight_error": 0.01}, "weight error of .* is 0.0.*, above 0.01"),
        ({"max_kl": 1e-6}, "KL divergence is .*, above 1e-06"),
        ({"min_top1": 1.1}, "top-1 agreement is .*, below 1.1"),
        ({"min_cosine": 0.9999}, "feature cosine is 0.9.*, below 0.9999"),
    ],
)
def test_bounds(verification, bounds, violation):
    import dataclasses
    import re

    found = dataclasses.replace(verification, bounds=Bounds(**bounds)).violations()
    assert len(found) == (violation is not None)
    assert violation is None or re.fullmatch(violation, found[0])


def test_different_models_are_refused(grouped, golden_folder):
    with pytest.raises(RequestError, match=r"these are different models: .* has shape"):
        verify(grouped, golden_folder / "tiny", **QUICK)


def test_options_that_contradict_each_other_are_refused(grouped, quantized):
    with pytest.raises(RequestError, match="weights_only asks no questions"):
        verify(grouped, quantized, weights_only=True, bounds=Bounds(max_kl=1))
    with pytest.raises(RequestError, match="max_tokens is 0"):
        verify(grouped, quantized, max_tokens=0)
    with pytest.raises(RequestError, match="max_kl is -1"):
        Bounds(max_kl=-1)
    with pytest.raises(CheckpointError, match="there is no folder"):
        verify(grouped, quantized / "nowhere")


def test_weights_alone(grouped, quantized, monkeypatch):
    monkeypatch.setattr(verify_module, "load", None)
    result = verify(grouped, quantized, weights_only=True, bounds=Bounds(max_weight_error=0.5))
    assert result.answers == ()
    assert "KL" not in verification_text(result)
    assert verification_json(result)["kl_mean"] is None


def test_a_damaged_layer_is_found(grouped, tmp_path):
    convert(grouped, tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    tensors["decoder.layers.2.mlp.up.weight"] *= -1
    save_file(tensors, file)
    result = verify(grouped, tmp_path / "out", weights_only=True)
    wrong = [error for error in result.weights if error.relative]
    assert [(error.path, error.layer) for error in wrong] == [("decoder.layers.2.mlp.up.weight", 2)]
    assert wrong[0].relative == pytest.approx(2)
    assert "decoder.layers.2.mlp.up.weight" in verification_text(result)


def test_reports_say_the_same(verification):
    content = json.loads(json.dumps(verification_json(verification)))
    assert content["kl_mean"] == verification.kl_mean
    assert content["weight_error"] == verification.weight_errors()
    assert len(content["tensors"]) == len(verification.weights)
    text = verification_text(verification)
    assert f"{verification.kl_mean:.3g}" in text
    assert f"{verification.feature_cosine:.5f}" in text


def test_the_card_takes_the_measured_quality_and_keeps_it(verification, quantized, tmp_path):
    import dataclasses

    folder = tmp_path / "out"
    shutil.copytree(quantized, folder)
    update_card(dataclasses.replace(verification, converted=str(folder)))
    card = (folder / "README.md").read_text()
    assert f"| same most probable token | {100 * verification.top1:.2f} % |" in card
    assert "1 questions, 6 tokens of answers" in card
    # Nothing else of the card has changed.
    assert set((quantized / "README.md").read_text().splitlines()) <= set(card.splitlines())
    convert(folder, tmp_path / "again")
    assert bytes_of(tmp_path / "again") == bytes_of(folder)
    # What is measured no longer holds for other weights.
    for name, options in (("plain", {"dequantize": True}), ("half", {"dtype": "bfloat16"})):
        convert(folder, tmp_path / name, **options)
        assert "Measured quality" not in (tmp_path / name / "README.md").read_text()
        assert config_of(tmp_path / name)["jvlm_mlx"]["quality"] is None


def test_the_card_of_others_is_not_touched(verification, golden_folder):
    import dataclasses

    with pytest.raises(RequestError, match="no local folder that jvlm convert wrote"):
        update_card(
            dataclasses.replace(verification, converted=str(golden_folder / "tiny-mlx-4bit"))
        )
    with pytest.raises(RequestError, match="do not leave out the questions"):
        update_card(dataclasses.replace(verification, answers=()))


def test_plot(verification, tmp_path):
    pytest.importorskip("matplotlib")
    from PIL import Image

    from jvlm_mlx.cli.charts import write_plot

    write_plot(verification, tmp_path / "errors.png")
    with Image.open(tmp_path / "errors.png") as image:
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(1 << 20)) > 10


def test_a_plot_without_matplotlib_says_what_to_install(verification, tmp_path, monkeypatch):
    import sys

    from jvlm_mlx.cli.charts import write_plot

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(RequestError, match=r"pip install 'jvlm-mlx\[plot\]'"):
        write_plot(verification, tmp_path / "errors.png")


def test_activations_of_every_layer_decide_about_float16(verification):
    modules = {one.module for one in verification.activations}
    assert modules == {"tower", "connector", "decoder"}
    decoder = [one for one in verification.activations if one.module == "decoder"]
    assert [one.layer for one in decoder] == list(range(len(decoder)))
    largest = verification.largest_activations()["decoder"]
    assert largest.largest == max(one.largest for one in decoder)
    report = verification_json(verification)
    assert report["float16"] == dict.fromkeys(("tower", "connector", "decoder"), "safe")
    assert len(report["activations"]) == len(verification.activations)
    text = verification_text(verification)
    assert f"{largest.largest:.4g}" in text
    assert "largest activation" in text


def test_a_conversion_that_overflows_float16_is_named(grouped, quantized, verification):
    layers = tuple(replace(one, largest=9e4) for one in verification.activations)
    overflowing = replace(verification, activations=layers)
    assert "overflows: compute this module in bfloat16" in verification_text(overflowing)
    infinite = tuple(replace(one, largest=float("inf")) for one in verification.activations)
    report = verification_json(replace(verification, activations=infinite))
    assert report["activations"][0]["largest"] is None
    assert report["float16"]["tower"] == "overflows"
