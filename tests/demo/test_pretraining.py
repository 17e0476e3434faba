"""What an eye is taught with is what its pictures show, and it learns."""

from random import Random

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

import jvlm_mlx
from jvlm_mlx.demo import sight
from jvlm_mlx.demo.command import run_command
from jvlm_mlx.demo.marks import CELL, KINDS, make_marks, patches_of
from jvlm_mlx.demo.phrases import COLOURS, SHAPES
from jvlm_mlx.demo.sight import Sight, batch_of, learning_rate, teach, write_seeing
from jvlm_mlx.demo.untrained import write_untrained
from jvlm_mlx.errors import ConversionError
from jvlm_mlx.processing.tiles import cut_tiles
from jvlm_mlx.processing.tiling import plan_layout
from jvlm_mlx.training.processes import Processes


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    return write_untrained(tmp_path_factory.mktemp("demo") / "untrained", 0)


def weights_of(folder):
    return mx.load(str(folder / "model.safetensors"))


def test_patches_are_those_of_the_processor(untrained):
    _, processor = jvlm_mlx.load(untrained)
    marks = [make_marks(Random(number)) for number in range(3)]
    config = processor.image_processor.config
    for example, patches in zip(marks, patches_of(marks), strict=True):
        expected = cut_tiles(example.picture, plan_layout(72, 72, config), config)
        np.testing.assert_allclose(patches, expected[0], atol=1e-6)


def test_the_map_says_where_something_is():
    seen, unmarked, marked = set(), [], []
    for number in range(300):
        picture, kinds, colours = make_marks(Random(number))
        assert kinds.shape == colours.shape == (18, 18)
        inked = np.asarray(picture).min(axis=2) < 150
        # (H, W) -> (rows, cell, columns, cell) -> (rows, columns)
        share = inked.reshape(18, CELL, 18, CELL).mean(axis=(1, 3))
        unmarked.append(share[kinds == 0].mean())
        marked.append(share[kinds > 0].mean())
        # Colours belong to shapes and bars, and only to them.
        assert ((colours > 0) == (kinds > len(KINDS) - len(SHAPES) - 1)).all()
        seen |= set(kinds.flatten().tolist())
    assert seen == set(range(len(KINDS) + 1))
    # Edges reach over into cells whose middle is free; letters have gaps.
    assert np.mean(unmarked) < 0.04
    assert np.mean(marked) > 0.35
    assert min(marked) > 0.15


def test_the_map_names_the_colour():
    inks = {}
    for number in range(100):
        picture, kinds, colours = make_marks(Random(number))
        pixels = np.asarray(picture)
        for row, column in np.argwhere(kinds == len(KINDS)):  # bars fill their cells
            middle = pixels[CELL * row + 1, CELL * column + 1]
            inks.setdefault(COLOURS[colours[row, column] - 1], []).append(middle)
    assert set(inks) == set(COLOURS)
    red, green, blue = np.median(inks["red"], axis=0)
    assert red > 150
    assert green < 80
    assert blue < 80
    assert np.median(inks["yellow"], axis=0)[1] > 150


def test_a_batch_has_every_cell_in_its_patch():
    marks = [make_marks(Random(number)) for number in range(2)]
    pixel_values, shown = batch_of(marks)
    assert pixel_values.shape == (2, 81, 192)
    assert shown.shape == (2, 81, 4, 2)
    # Patch 10 is in row 1, column 1: cells of rows and columns 2 and 3.
    expected = marks[1].kinds[2:4, 2:4].flatten()
    np.testing.assert_array_equal(shown[1, 10, :, 0], expected)


def test_cells_over_the_edge_do_not_count(untrained):
    model, _ = jvlm_mlx.load(untrained, dtype="float32")
    eyes = Sight(model)
    # The windows at the right and lower edge have half of their patches outside.
    assert eyes._inside.sum() == 81
    assert sorted(eyes._patches[eyes._inside].tolist()) == list(range(81))


def test_a_lesson_changes_eyes_and_connector_only(untrained, tmp_path):
    folder = write_seeing(untrained, tmp_path / "seeing", 2)
    before, after = weights_of(untrained), weights_of(folder)
    assert before.keys() == after.keys()
    for path, array in before.items():
        same = mx.array_equal(array, after[path]).item()
        assert same == path.startswith(("decoder.", "lm_head.")) or path == "connector.pad_embed"
    result = jvlm_mlx.generate(
        *jvlm_mlx.load(folder), "?", [Image.new("RGB", (72, 72))], max_tokens=1
    )
    assert result.generation_tokens == 1


def test_lessons_teach(untrained, monkeypatch):
    """The same few pictures again and again, until they are known."""
    model, _ = jvlm_mlx.load(untrained, dtype="float32")
    marks = [make_marks(Random(number)) for number in range(4)]
    monkeypatch.setattr(sight, "_BATCH_SIZE", 4)
    monkeypatch.setattr(sight, "make_marks", lambda random: marks[random.randrange(4)])
    losses = []
    teach(model, 60, processes=Processes(), report=lambda _, loss: losses.append(loss))
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
        "demo.sight", sight.__doc__, sight.add_arguments, sight.run, [str(one) for one in arguments]
    )


def test_the_command_writes_and_then_refuses(untrained, tmp_path, capsys):
    output = tmp_path / "out"
    assert run(untrained, output, "--steps", 1) == 0
    assert capsys.readouterr() == ("", "")  # no progress: nobody is watching
    assert run(untrained, output, "--steps", 1) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert run(tmp_path / "nowhere", tmp_path / "other") == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "other").exists()


def test_what_exists_is_refused_before_any_lesson(untrained, tmp_path, monkeypatch):
    (tmp_path / "out").write_text("mine")
    monkeypatch.setattr(sight, "teach", lambda *_, **__: pytest.fail("too late"))
    with pytest.raises(ConversionError):
        write_seeing(untrained, tmp_path / "out", 1)
