"""Tiles at once from a memory budget."""

import dataclasses

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from benchmarks.common.geometry import random_model
from jvlm_mlx import GenerationOptions, RequestError, generate
from jvlm_mlx.command_line.main import main
from jvlm_mlx.doctor.equality import small_settings
from jvlm_mlx.generate.budget import (
    MOST_TILES,
    SCORES_BYTES,
    choose_tile_group_size,
    kv_bytes,
    memory_bytes,
    tile_bytes,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8 * 10**9), ("7.5 GiB", 7.5 * 2**30), ("500mb", 5 * 10**8), ("1234", 1234)],
)
def test_sizes_as_people_write_them(text, size):
    assert memory_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1GB", "0", "8 GBB", "1TB"])
def test_no_sizes_are_refused(text):
    with pytest.raises(RequestError, match="size like 8GB"):
        memory_bytes(text)


def test_the_command_line_says_what_a_size_is(capsys):
    with pytest.raises(SystemExit):
        main(["generate", "-p", "hi", "--max-memory", "much"])
    assert "size like 8GB" in capsys.readouterr().err


def test_as_many_tiles_as_fit(tiny):
    model, _ = tiny
    weights = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    one = tile_bytes(model.settings, 4)
    fixed = weights + kv_bytes(model.settings, 100 + 50, 4) + SCORES_BYTES

    def chosen(memory):
        options = GenerationOptions(max_tokens=50, max_memory=memory)
        return choose_tile_group_size(model, options, 100)

    assert chosen(fixed + one) == 1
    assert chosen(fixed + 3 * one - 1) == 2
    assert chosen(fixed + 1000 * one) == MOST_TILES
    with pytest.raises(RequestError, match="one tile"):
        chosen(fixed + one - 1)


def test_without_a_budget_the_group_size_is_as_asked(tiny):
    options = GenerationOptions(tile_group_size=7)
    assert choose_tile_group_size(tiny[0], options) == 7


def test_a_budget_does_not_change_the_answer(tiny, golden_folder):
    model, processor = tiny
    arguments = "What is this?", golden_folder / "images" / "wide.png"
    whole = generate(model, processor, *arguments, max_tokens=8)
    weights = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    tight = (
        weights + kv_bytes(model.settings, 4000, 4) + SCORES_BYTES + tile_bytes(model.settings, 4)
    )
    assert generate(
        model, processor, *arguments, max_tokens=8, max_memory=tight
    ).token_ids == whole.token_ids  # fmt: skip


def test_the_formula_covers_what_is_measured():
    small = small_settings()
    block = dataclasses.replace(
        small.tower.block, mlp=dataclasses.replace(small.tower.block.mlp, intermediate_size=1152)
    )
    settings = dataclasses.replace(
        small, tower=dataclasses.replace(small.tower, block=block, image_size=(252, 252))
    )
    tower = random_model(settings).vision_tower
    peaks = {}
    for tiles in (1, 2):
        shape = (tiles, settings.tower.num_patches, settings.tower.patch_values)
        pixels = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
        mx.synchronize()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(tower(mx.array(pixels)))
        peaks[tiles] = mx.get_peak_memory() - before
    bound = tile_bytes(settings, 4)
    assert all(peak <= SCORES_BYTES + tiles * bound for tiles, peak in peaks.items())
    # A bound that allowed ten times as much would waste what it is to use.
    assert peaks[2] - peaks[1] >= 0.25 * bound
