"""The ablations' script trains and measures every kind of variant."""

import json

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from benchmarks import ablations
from benchmarks.demo_model.initialization import write_initialized
from jvlm_mlx import load


def test_variants_differ_in_one_thing_each():
    base = ablations.BASE
    for variant in ablations.VARIANTS.values():
        changes = [
            field
            for field in ("pooling", "text_share", "feature_layers")
            if getattr(variant, field) != getattr(base, field)
        ]
        assert len(changes) == (variant is not base)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return str(write_initialized(tmp_path_factory.mktemp("start") / "demo", 5))


@pytest.mark.parametrize(("pooling", "tokens"), [("attention", 89), ("mean", 89), ("none", 337)])
def test_poolings_are_built(tmp_path, start, pooling, tokens):
    model, processor = ablations.build(
        ablations._variant("one", pooling=pooling), tmp_path / "untrained", 0, start
    )
    pretrained, _ = load(start)
    mine, theirs = (dict(tree_flatten(one.parameters())) for one in (model, pretrained))
    for path, array in theirs.items():
        if not path.startswith("connector."):
            assert mx.array_equal(mine[path], array).item(), path
    down = "connector.projector.down.weight"
    assert not mx.array_equal(mine[down], theirs[down]).item()
    layout = processor.image_layout(128, 128)
    assert layout.num_patch_tokens == tokens
    image = np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)
    inputs = processor("?", [image])
    assert np.isfinite(np.array(model(**inputs)[0, -1])).all()


def test_mean_pooling_is_a_mean():
    pooling = ablations.MeanPooling(3, 2)
    windows = mx.random.normal((5, 4, 3), key=mx.random.key(0))
    np.testing.assert_allclose(
        pooling(windows), pooling(mx.repeat(windows.mean(1, keepdims=True), 4, 1)), atol=1e-6
    )
    assert not np.allclose(pooling(windows), pooling(windows[:, :1]))


def test_a_short_run_is_measured_and_kept(tmp_path, start):
    said = []
    arguments = [
        "--work", str(tmp_path), "--images", "32", "--steps", "2", "--examples", "1",
        "--batch-size", "4", "--start", start, "--variants", "mean pooling", "0 % text",
    ]  # fmt: skip
    ablations.main(arguments, said.append)
    result = json.loads(said[-1])["variants"]
    assert set(result["mean pooling"]["by_task"]) == set(ablations.TASKS)
    assert result["mean pooling"]["loss"] > 0
    # What is finished is not done again.
    again = []
    ablations.main(arguments, again.append)
    assert again[0] == said[-2]
