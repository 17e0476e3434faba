"""Synthetic tiles are labeled with what they show, and pretraining on them lowers the loss."""

from random import Random

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

import jvlm_mlx
from benchmarks.demo_model import pretraining
from benchmarks.demo_model.initialization import write_initialized
from benchmarks.demo_model.maker_command import run_command
from benchmarks.demo_model.pretraining import (
    TileReader,
    batch_of,
    learning_rate,
    pretrain,
    write_pretrained,
)
from benchmarks.demo_model.synthetic_tiles import CELL, KINDS, make_synthetic_tile, patches_of
from jvlm_mlx.demo.phrases import COLORS, SHAPES
from jvlm_mlx.errors import ConversionError
from jvlm_mlx.process_group import ProcessGroup
from jvlm_mlx.processing.tiles import cut_tiles, resize_source
from jvlm_mlx.processing.tiling import plan_layout


@pytest.fixture(scope="module")
def initialized(tmp_path_factory):
    return write_initialized(tmp_path_factory.mktemp("demo") / "initialized", 0)


def weights_of(folder):
    return mx.load(str(folder / "model.safetensors"))


def test_patches_are_those_of_the_processor(initialized):
    _, processor = jvlm_mlx.load(initialized)
    tiles = [make_synthetic_tile(Random(number)) for number in range(3)]
    config = processor.image_processor.config
    layout = plan_layout(72, 72, config)
    for example, patches in zip(tiles, patches_of(tiles), strict=True):
        expected = cut_tiles(resize_source(example.image, layout, config), layout, config)
        np.testing.assert_allclose(patches, expected[0], atol=1e-6)


def test_the_map_says_where_something_is():
    seen, unmarked, marked = set(), [], []
    for number in range(300):
        image, kinds, colors = make_synthetic_tile(Random(number))
        assert kinds.shape == colors.shape == (18, 18)
        inked = np.asarray(image).min(axis=2) < 150
        # (H, W) -> (rows, cell, columns, cell) -> (rows, columns)
        share = inked.reshape(18, CELL, 18, CELL).mean(axis=(1, 3))
        unmarked.append(share[kinds == 0].mean())
        marked.append(share[kinds > 0].mean())
        # Colors belong to shapes and bars, and only to them.
        assert ((colors > 0) == (kinds > len(KINDS) - len(SHAPES) - 1)).all()
        seen |= set(kinds.flatten().tolist())
    assert seen == set(range(len(KINDS) + 1))
    # Edges reach over into cells whose middle is free; letters have gaps.
    assert np.mean(unmarked) < 0.04
    assert np.mean(marked) > 0.35
    assert min(marked) > 0.15


def test_the_map_names_the_color():
    inks = {}
    for number in range(100):
        image, kinds, colors = make_synthetic_tile(Random(number))
        pixels = np.asarray(image)
        for row, column in np.argwhere(kinds == len(KINDS)):  # bars fill their cells
            middle = pixels[CELL * row + 1, CELL * column + 1]
            inks.setdefault(COLORS[colors[row, column] - 1], []).append(middle)
    assert set(inks) == set(COLORS)
    red, green, blue = np.median(inks["red"], axis=0)
    assert red > 150
    assert green < 80
    assert blue < 80
    assert np.median(inks["yellow"], axis=0)[1] > 150


def test_a_batch_has_every_cell_in_its_patch():
    tiles = [make_synthetic_tile(Random(number)) for number in range(2)]
    pixel_values, shown = batch_of(tiles)
    assert pixel_values.shape == (2, 81, 192)
    assert shown.shape == (2, 81, 4, 2)
    # Patch 10 is in row 1, column 1: cells of rows and columns 2 and 3.
    expected = tiles[1].kinds[2:4, 2:4].flatten()
    np.testing.assert_array_equal(shown[1, 10, :, 0], expected)


def test_cells_over_the_edge_do_not_count(initialized):
    model, _ = jvlm_mlx.load(initialized, dtype="float32")
    eyes = TileReader(model)
    # The windows at the right and lower edge have half of their patches outside.
    assert eyes._inside.sum() == 81
    assert sorted(eyes._patches[eyes._inside].tolist()) == list(range(81))


def test_pretraining_changes_tower_and_connector_only(initialized, tmp_path):
    folder = write_pretrained(initialized, tmp_path / "pretrained", 2)
    before, after = weights_of(initialized), weights_of(folder)
    assert before.keys() == after.keys()
    for path, array in before.items():
        same = mx.array_equal(array, after[path]).item()
        assert same == path.startswith(("decoder.", "lm_head.")) or path == "connector.pad_embed"
    result = jvlm_mlx.generate(
        *jvlm_mlx.load(folder), "?", [Image.new("RGB", (72, 72))], max_tokens=1
    )
    assert result.generation_tokens == 1


def test_pretraining_lowers_the_loss(initialized, monkeypatch):
    """The same few images again and again, until they are known."""
    model, _ = jvlm_mlx.load(initialized, dtype="float32")
    tiles = [make_synthetic_tile(Random(number)) for number in range(4)]
    monkeypatch.setattr(pretraining, "_BATCH_SIZE", 4)
    monkeypatch.setattr(
        pretraining, "make_synthetic_tile", lambda random: tiles[random.randrange(4)]
    )
    losses = []
    pretrain(model, 60, group=ProcessGroup(), report=lambda _, loss: losses.append(loss))
    assert len(losses) == 60
    assert losses[0] > 8
    assert min(losses[-5:]) < losses[0] / 3
    assert not model.training


def test_the_rate_rises_and_falls():
    rates = [learning_rate(step, 200) for step in range(200)]
    assert max(rates) == max(rates[40:60])
    assert rates[0] < rates[10] < rates[40]
    assert rates[60] > rates[120] > rates[199] > 0
    assert rates[199] < max(rates) / 15


def run(*arguments):
    return run_command(
        "pretraining",
        pretraining.__doc__,
        pretraining.add_arguments,
        pretraining.run,
        [str(one) for one in arguments],
    )


def test_the_command_writes_and_then_refuses(initialized, tmp_path, capsys):
    output = tmp_path / "out"
    assert run(initialized, output, "--steps", 1) == 0
    assert capsys.readouterr() == ("", "")  # no progress: nobody is watching
    assert run(initialized, output, "--steps", 1) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert run(tmp_path / "nowhere", tmp_path / "other") == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "other").exists()


def test_what_exists_is_refused_before_any_step(initialized, tmp_path, monkeypatch):
    (tmp_path / "out").write_text("mine")
    monkeypatch.setattr(pretraining, "pretrain", lambda *_, **__: pytest.fail("too late"))
    with pytest.raises(ConversionError):
        write_pretrained(initialized, tmp_path / "out", 1)
