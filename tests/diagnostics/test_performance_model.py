"""The performance model against the model's own graphs, arrays and products."""

from collections import Counter
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from PIL import Image

from benchmarks.harness.counting import count_kernels
from benchmarks.harness.models import constant, released_model_config, weightless_model
from benchmarks.harness.photos import image_processor
from benchmarks.kernels import filled_cache
from jvlm_mlx.diagnostics import performance_model as performance
from jvlm_mlx.diagnostics.roofline import Kernel, Rates, Stage, WeightFormat, buffer_limits
from jvlm_mlx.diagnostics.sample_model import (
    deepen,
    narrow_config,
    quantized,
    random_model,
    released_config,
    released_image_config,
    with_depth,
)
from jvlm_mlx.model import ops
from jvlm_mlx.processing import resize, tiles
from jvlm_mlx.processing.tiling import plan_layout

FLOAT32 = WeightFormat("float32", None, 4)
BFLOAT16 = WeightFormat("bfloat16", None, 2)
UNFUSED_POOLING = 3
"""Kernels of the pooling's attention, which the counter takes for one, beyond the first."""


@pytest.fixture(scope="module", params=[FLOAT32, BFLOAT16], ids=lambda form: form.name)
def released(request):
    dtype = mx.float32 if request.param is FLOAT32 else mx.bfloat16
    model = deepen(weightless_model(with_depth(released_config(), 2, 1), dtype), released_config())
    return model, request.param


def test_the_geometry_is_the_releases():
    assert released_config() == released_model_config()
    assert released_image_config() == image_processor().config


def test_a_decode_step_has_the_kernels_of_its_graph(released):
    model, form = released
    cache = filled_cache(released_config(), model.dtype)
    counted = count_kernels(
        lambda: mx.argmax(model(mx.array([[5]]), cache=cache)[:, -1], axis=-1)
    ).total()
    assert performance.decode_step(released_config(), 1000, form).launches == counted


def test_a_prefill_has_the_kernels_of_its_graph(released):
    model, form = released
    prompt = performance.LONG_PROMPT
    embeddings = constant((1, prompt.tokens, 2048), model.dtype)

    def fill():
        cache = model.make_cache()
        hidden = model.decoder(embeddings, cache)
        return [hidden, *[array for layer in cache for array in (layer.keys, layer.values)]]

    assert (
        performance.prefill(released_config(), prompt.tokens, form).launches
        == count_kernels(fill).total()
    )


def test_tower_connector_and_head_have_the_kernels_of_their_graphs(released):
    model, form = released
    config = released_config()
    pixels = constant((4, 729, 588), mx.float32)
    features = constant((1, 729, config.tower.feature_size), model.dtype)
    masks, hidden = constant((1, 729), mx.int8), constant((1, 2048), model.dtype)
    patches, inside = constant((196, 4), mx.int32), constant((196, 4), mx.bool_)
    counted = count_kernels(lambda: model.vision_tower(pixels)).total()
    assert performance.tower(config, 4, form).launches == counted
    counted = count_kernels(lambda: model.connector(features, masks, patches, inside)).total()
    assert performance.connector(config, 196, form).launches == counted + UNFUSED_POOLING
    counted = count_kernels(lambda: mx.argmax(model.head(hidden), axis=-1)).total()
    assert performance.head(config, form).launches == counted


def test_a_packed_decode_step_has_the_kernels_of_its_graph():
    config = narrow_config()
    model = quantized(random_model(config), 4)
    cache = model.make_cache()
    mx.eval(model(np.arange(300)[None], cache=cache), [layer.state for layer in cache])
    counted = count_kernels(
        lambda: mx.argmax(model(mx.array([[5]]), cache=cache)[:, -1], axis=-1)
    ).total()
    form = WeightFormat("4-bit", 4, 4)
    assert performance.decode_step(config, 300, form).launches == counted


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_bytes_of_a_decode_step_are_those_of_its_arrays(bits):
    """Weights, and the KV cache of the context; what one token is, is small beside them."""
    config, context = narrow_config(), 512
    model = random_model(config)
    form = WeightFormat("float32", None, 4)
    if bits is not None:
        model, form = quantized(model, bits), WeightFormat(f"{bits}-bit", bits, 4)
    cache = model.make_cache()
    mx.eval(model(np.arange(context)[None] % 512, cache=cache))
    arrays = tree_flatten([model.decoder.parameters(), model.lm_head.parameters()])
    matrices = sum(
        array.nbytes for name, array in arrays if array.ndim > 1 and "embedding" not in name
    )
    cached = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache)
    stage = performance.decode_step(config, context, form)
    streamed = sum(
        kernel.read for kernel in stage.kernels
        if kernel.name in ("qkv", "out", "up", "down", "head", "attention")
    )  # fmt: skip
    assert streamed == pytest.approx(matrices + cached, rel=0.02)
    assert stage.nbytes == pytest.approx(streamed, rel=0.08)


@pytest.mark.parametrize(
    ("stage", "run"),
    [
        (
            performance.tower(narrow_config(), 2, FLOAT32),
            lambda model: model.vision_tower(mx.zeros((2, 81, 588))),
        ),
        (
            performance.connector(narrow_config(), 25, FLOAT32),
            lambda model: model.connector(
                mx.zeros((1, 81, 288)), mx.zeros((1, 81)), mx.zeros((25, 4), mx.int32),
                mx.ones((25, 4), mx.bool_),
            ),
        ),
        (
            performance.prefill(narrow_config(), 40, FLOAT32),
            lambda model: model.decoder(mx.zeros((1, 40, 256)), model.make_cache()),
        ),
        (
            performance.head(narrow_config(), FLOAT32),
            lambda model: model.head(mx.zeros((1, 256))),
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)  # fmt: skip
def test_operations_are_those_of_the_products_that_a_model_makes(stage, run):
    counted = Counter()
    linear, attention = nn.Linear.__call__, mx.fast.scaled_dot_product_attention

    def count_linear(self, x):
        counted["products"] += 2 * x.size * self.weight.shape[0]
        return linear(self, x)

    def count_attention(queries, keys, values, *, mask=None, **options):
        pairs = keys.shape[2] / 2 if mask == "causal" else keys.shape[2]
        counted["products"] += 4 * queries.size * pairs
        return attention(queries, keys, values, mask=mask, **options)

    model = random_model(narrow_config())
    with (
        mock.patch.object(nn.Linear, "__call__", count_linear),
        mock.patch.object(mx.fast, "scaled_dot_product_attention", count_attention),
        ops.mlx_kernels_only(),
    ):
        mx.eval(run(model))
    assert stage.flops == counted["products"]


def test_the_release_at_the_long_prompt():
    """The figures that a photo of 12 tiles is known by."""
    config, prompt = released_config(), performance.LONG_PROMPT
    tower = sum(performance.tower(config, tiles, BFLOAT16).flops for tiles in (4, 4, 4, 1))
    assert tower == pytest.approx(8.0e12, rel=0.01)
    assert performance.connector(config, prompt.windows, BFLOAT16).flops == pytest.approx(
        0.18e12, rel=0.03
    )
    assert performance.prefill(config, prompt.tokens, BFLOAT16).flops == pytest.approx(
        5.4e12, rel=0.01
    )
    for bits, gigabytes in ((None, 3.44), (8, 1.83), (4, 0.97)):
        form = WeightFormat("", bits, 2)
        step = performance.decode_step(config, prompt.tokens, form)
        assert step.nbytes == pytest.approx((gigabytes + 0.2) * 1e9, rel=0.02)


def test_command_buffers_end_after_kernels_or_megabytes():
    small = Stage("small", (Kernel("add", 0, 1, 1),) * 100)
    assert small.command_buffers((40, 40)) == 3  # of 41, 41 and 18
    assert small.command_buffers((50, 50)) == 2  # of 51 and 49
    large = Stage("large", (Kernel("read", 0, 60 * 2**20, 1),) * 7)
    assert large.command_buffers((50, 50)) == 7
    assert large.command_buffers((500, 200)) == 2  # of 4 and 3
    assert Stage("numpy", small.kernels, on_host=True).command_buffers((40, 40)) == 0


@pytest.mark.parametrize(
    ("architecture", "environment", "limits"),
    [
        ("applegpu_g13g", {}, (40, 40)),
        ("applegpu_g16s", {}, (50, 50)),
        ("x86_64", {}, (40, 40)),
        ("applegpu_g16s", {"MLX_MAX_OPS_PER_BUFFER": "500"}, (500, 50)),
        ("applegpu_g16s", {"MLX_MAX_MB_PER_BUFFER": "lots"}, (50, 50)),
    ],
)
def test_limits_of_command_buffers_are_the_chips_or_the_environments(
    architecture, environment, limits
):
    assert buffer_limits(architecture, environment) == limits


def test_time_is_the_slower_of_arithmetic_and_memory_and_the_launch():
    rates = Rates(flops=100.0, bandwidth=10.0, launch=1.0)
    assert Kernel("product", 500, 10, 10).seconds(rates) == 6
    assert Kernel("read", 100, 30, 10).seconds(rates) == 5
    stage = Stage("both", (Kernel("product", 500, 10, 10), Kernel("read", 100, 30, 10)))
    assert stage.seconds(rates) == 11


@pytest.mark.parametrize("size", [(200, 300), (1000, 1500), (196, 294)])
def test_preprocessing_counts_what_is_multiplied(size):
    """Every tap is one product and one sum: counted where numpy adds them up."""
    config = released_image_config()
    layout = plan_layout(*size, config)
    added = Counter()
    add_product = resize._add_product

    def counted(total, values, weight, fused):
        added["values"] += values.size
        return add_product(total, values, weight, fused)

    image = Image.new("RGB", size[::-1], "red")
    with mock.patch.object(resize, "_add_product", counted):
        tiles.cut_tiles(tiles.resize_source(image, layout, config), layout, config)
    stage = performance.preprocessing(size, layout, config)
    assert stage.flops == pytest.approx(2 * added["values"], rel=0.1)
    assert stage.launches == 0
