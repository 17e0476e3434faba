"""The benchmark's formulas against the paper's numbers and the processor's."""

import dataclasses

import pytest

from benchmarks.efficiency import PAPER, linear_operations, rows
from benchmarks.harness.models import released_model_config
from benchmarks.harness.photos import TILES, photo_inputs
from jvlm_mlx.diagnostics.performance_model import (
    decode_step,
    decoder_layer_weights,
    prefill,
    tower,
)
from jvlm_mlx.diagnostics.roofline import BFLOAT16, WeightFormat
from jvlm_mlx.generation.memory import kv_bytes


def test_the_papers_figures_for_13_tiles_follow():
    row = next(row for row in rows() if row.tiles == PAPER["tiles"])
    assert (row.patches, row.paper_tokens) == (PAPER["without"], PAPER["with"])
    # The paper counts a question's text as well and rounds to one digit.
    assert row.prefill_ratio == pytest.approx(PAPER["prefill"], abs=0.15)
    assert row.total_ratio == pytest.approx(PAPER["total"], abs=0.05)
    assert row.patches / row.paper_tokens == pytest.approx(PAPER["kv"], abs=0.05)


def test_actual_tokens_are_those_of_the_processor():
    row = next(row for row in rows() if row.tiles == 13)
    inputs = photo_inputs(13, text_tokens=7)
    assert (inputs.image_input_idx >= 0).sum() == row.actual_tokens == 1692
    assert inputs.input_ids.shape[1] == row.actual_with_separators + 7 == 1744 + 7


@pytest.mark.parametrize("tiles", TILES)
def test_photos_have_the_tiles_they_are_named_by(tiles):
    assert photo_inputs(tiles).tiles == tiles


def test_sizes_of_the_release():
    config = released_model_config()
    assert 28 * decoder_layer_weights(config) == pytest.approx(1.41e9, rel=0.01)
    # 2 x 28 layers x 8 heads x 128 values x 2 bytes.
    assert kv_bytes(config, 1, 2) == 114_688
    float32 = WeightFormat("float32", None, 4)
    assert decode_step(config, 0, float32).nbytes == pytest.approx(6.88e9, rel=0.01)
    # The tower has 412 M weights, 25 of 27 layers are used, and attention comes on top.
    assert tower(config, 1, BFLOAT16).flops == pytest.approx(617e9, rel=0.01)


def test_prefill_grows_linearly_but_for_attention():
    config = released_model_config()
    assert linear_operations(config, 2000) == 2 * linear_operations(config, 1000)
    one = dataclasses.replace(
        config, decoder=dataclasses.replace(config.decoder, num_hidden_layers=1)
    )
    assert prefill(config, 1000, BFLOAT16).flops == 28 * prefill(one, 1000, BFLOAT16).flops
