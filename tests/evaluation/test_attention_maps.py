"""What an answer looked at lands on the right pixels, and is what the fast path computes."""

import dataclasses
from random import Random

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image, ImageDraw

import jvlm_mlx
from jvlm_mlx.cli.main import main
from jvlm_mlx.demo.tasks import make_example
from jvlm_mlx.errors import RequestError
from jvlm_mlx.evaluation.attention_image import draw_explanation, overlay, with_tiles
from jvlm_mlx.explain import explain

OPTIONS = {"max_tokens": 3, "stop_token_ids": ()}


def marked(size, box):
    """A black image with one white square."""
    image = Image.new("RGB", size)
    ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), "white")
    return image


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((300, 200), (200, 40, 230, 60)),
        ((150, 400), (20, 330, 60, 390)),
        ((64, 64), (0, 0, 9, 9)),
        ((333, 111), (320, 100, 333, 111)),
    ],
)
def test_windows_are_where_their_pixels_come_from(tiny, size, box):
    """A window sees the square if, and only if, it lies on the square."""
    model, processor = tiny
    image = marked(size, box)
    explanation = explain(model, processor, image, "What?", **OPTIONS)
    inputs = processor(["<|image|>"], [[image]])
    pixels = np.asarray(inputs.pixel_values)[0]  # (T, P, V)
    positions = np.asarray(inputs.image_input_idx)[0]  # (T, W)
    plan = model.plan(positions[None], int(positions.max()) + 1, len(pixels))
    (group,) = plan.groups
    patches = pixels[group.tiles].reshape(-1, pixels.shape[-1])  # (t P, V)
    darkest = pixels.min()
    lit = (patches[group.patches] > darkest + 0.25).any(-1) & group.inside  # (F, p)

    left, top, right, bottom = box
    touches = (
        (explanation.patch_boxes[..., 0] < right)
        & (explanation.patch_boxes[..., 2] > left)
        & (explanation.patch_boxes[..., 1] < bottom)
        & (explanation.patch_boxes[..., 3] > top)
    )
    # Resizing smears the square over a pixel of the canvas, so at its edge both may be right.
    near = (
        (explanation.patch_boxes[..., 0] < right + 4)
        & (explanation.patch_boxes[..., 2] > left - 4)
        & (explanation.patch_boxes[..., 1] < bottom + 4)
        & (explanation.patch_boxes[..., 3] > top - 4)
    )
    inner = (
        (explanation.patch_boxes[..., 0] < right - 4)
        & (explanation.patch_boxes[..., 2] > left + 4)
        & (explanation.patch_boxes[..., 1] < bottom - 4)
        & (explanation.patch_boxes[..., 3] > top + 4)
    )
    assert lit.any()
    assert touches.any()
    assert not (lit & ~near).any()
    assert not (inner & group.inside & ~lit).any()

    # All attention on what saw the square is drawn on the square, and nowhere far from it.
    seen = lit.any(-1)
    attention = np.zeros_like(explanation.attention)
    attention[:, :, seen] = 1 / seen.sum()
    heat = dataclasses.replace(explanation, attention=attention).attention_map()
    assert heat.shape == (size[1], size[0])
    assert heat.sum() == pytest.approx(1, abs=1e-4)
    sides = (explanation.window_boxes[:, 2:] - explanation.window_boxes[:, :2]).max(0) + 4
    rows, columns = np.nonzero(heat)
    assert (columns.min(), rows.min()) >= (left - sides[0], top - sides[1])
    assert (columns.max(), rows.max()) <= (right + sides[0], bottom + sides[1])
    assert heat[top:bottom, left:right].mean() > 3 * heat.mean()


def test_weights_are_those_of_the_fast_path(tiny):
    model, processor = tiny
    ids = mx.array(processor.encode("Some words, to be read", 0)[None])
    embeddings = model.decoder.embed(ids)
    layer = model.decoder.layers[0]
    x = layer.attention_norm(embeddings)
    attention = layer.attention

    weights = attention.weights(x, first=2)

    config = attention._config
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    values = mx.unflatten(attention.qkv(x), -1, (heads + 2 * groups, config.head_dim))
    values = mx.repeat(values[:, :, heads + groups :].transpose(0, 2, 1, 3), heads // groups, 1)
    # (B, H, L, D) -> (B, L, H D)
    mixed = mx.flatten((weights @ values).transpose(0, 2, 1, 3), -2)
    assert np.allclose(attention.out(mixed), attention(x, "causal")[:, 2:], atol=1e-5)
    assert np.allclose(weights.sum(-1), 1, atol=1e-5)


def test_pooling_weights_are_those_of_the_fast_path(tiny):
    pooling = tiny[0].connector.pooling
    windows = mx.random.normal((5, 4, pooling.q.weight.shape[1]), key=mx.random.key(0))

    weights = pooling.weights(windows)

    _, _, values = pooling._heads(windows)  # (W, H, p, D)
    mixed = mx.flatten((weights[:, :, None] @ values)[:, :, 0], 1)
    assert np.allclose(pooling.out(mixed), pooling(windows), atol=1e-5)


def test_an_explanation_is_of_the_answer_that_generate_gives(tiny, golden_folder):
    image = golden_folder / "images/wide.png"

    explanation = explain(*tiny, image, "Describe.", **OPTIONS)

    answer = jvlm_mlx.generate(*tiny, "Describe.", image, **OPTIONS)
    assert explanation.text == answer.text
    assert len(explanation.tokens) == 3
    tokens, layers, features = explanation.attention.shape
    assert (tokens, layers) == (3, len(tiny[0].layers))
    assert features == len(explanation.window_boxes) == len(explanation.tile_of)
    assert np.allclose(explanation.pooling.sum(-1), 1, atol=1e-4)
    fractions = explanation.attention.sum(-1)
    assert (fractions > 0).all()
    assert (fractions < 1).all()
    # Where the image ends, what is drawn ends too.
    with Image.open(image) as opened:
        assert explanation.image.size == opened.size
    assert explanation.window_boxes.min() >= 0
    assert (explanation.window_boxes[:, 2:].max(0) <= np.array(explanation.image.size) + 1e-6).all()


def test_pooling_without_a_preference_is_flat(tiny):
    explanation = explain(*tiny, marked((200, 150), (0, 0, 9, 9)), "What?", **OPTIONS)
    inside = np.prod(explanation.patch_boxes[..., 2:] - explanation.patch_boxes[..., :2], -1) > 0
    even = inside / inside.sum(1, keepdims=True)

    flat = dataclasses.replace(explanation, pooling=even.astype(np.float32)).pooling_map()

    assert np.allclose(flat, 1, atol=1e-3)


@pytest.fixture(scope="module")
def demo():
    return jvlm_mlx.load("demo")


def test_the_demo_looks_at_the_number_it_reads(demo):
    """Digits are few pixels of the image, and get most of the attention on it."""
    example = make_example("small_number", "en", Random(1))
    explanation = explain(*demo, example.image, example.turns[0].question, max_tokens=8)
    answer = example.turns[0].answer
    assert explanation.text.strip() == answer

    pixels = np.asarray(explanation.image).astype(int)
    heats = [explanation.attention_map(explanation.tokens.index(digit)) for digit in answer]
    attended = sum(heats)
    top, left = np.unravel_index(attended.argmax(), attended.shape)
    around = pixels[max(0, top - 8) : top + 9, max(0, left - 8) : left + 9].reshape(-1, 3)
    # There is ink where it looks most.
    assert np.ptp(around, axis=0).max() > 60
    assert attended.max() > 10 * np.median(attended)


def test_an_overlay_changes_only_what_is_hot():
    image = Image.new("RGB", (20, 10), "white")
    heat = np.zeros((10, 20), np.float32)
    heat[2:4, 15:18] = 3

    changed = np.argwhere((np.asarray(overlay(image, heat)) != 255).any(-1))

    assert changed.min(0).tolist() == [2, 15]
    assert changed.max(0).tolist() == [3, 17]
    assert np.array_equal(np.asarray(overlay(image, 0 * heat)), np.asarray(image))


def test_tiles_are_drawn_where_they_are(tiny):
    explanation = explain(*tiny, Image.new("RGB", (300, 200), "white"), "What?", **OPTIONS)

    drawn = np.asarray(with_tiles(explanation))

    boxes = explanation.tile_boxes[1:]
    assert len(boxes) > 1
    assert boxes[:, :2].min(0).tolist() == [0, 0]
    assert boxes[:, 2:].max(0).tolist() == pytest.approx([300, 200])
    for left, top, _, _ in boxes.round().astype(int):
        assert (drawn[top, left] != 255).any()


def test_a_thumbnail_alone_is_explained(tiny):
    image = marked((300, 200), (200, 40, 230, 60))
    explanation = explain(*tiny, image, "What?", **OPTIONS | {"max_crops": 0})

    assert explanation.tile_boxes.tolist() == [[0, 0, 300, 200]]
    assert explanation.patch_boxes[..., 2:].reshape(-1, 2).max(0).tolist() == [300, 200]
    with_tiles(explanation)


def test_the_command_writes_an_image(golden_folder, tmp_path, capsys):
    image, output = golden_folder / "images/square.png", tmp_path / "out.png"
    arguments = ["--model", str(golden_folder / "tiny"), "-i", str(image), "-p", "What?", "--quiet"]

    assert main(["explain", *arguments, "-o", str(output), "--max-tokens", "2"]) == 0

    assert capsys.readouterr().out.strip()
    with Image.open(output) as drawn:
        assert drawn.size[0] > 300
    assert main(["explain", *arguments, "-o", str(tmp_path / "out.jpg")]) == 1
    assert "must end in .png" in capsys.readouterr().err


def test_many_tokens_still_fit_on_a_sheet(tiny):
    explanation = explain(
        *tiny, marked((60, 40), (0, 0, 9, 9)), "What?", max_tokens=40, stop_token_ids=()
    )

    assert draw_explanation(explanation).size[1] < 3000


def test_an_encoded_image_cannot_be_explained(tiny, golden_folder):
    encoded = jvlm_mlx.encode_image(*tiny, golden_folder / "images/dot.png")

    with pytest.raises(RequestError, match="give the image itself"):
        explain(*tiny, encoded, "What?")
