"""Models to examine a machine with: the release's geometry or a narrow one, random weights.

A few layers stand for all: a stage of full depth runs them again and again, so kernels and
operations are the release's, and the memory is not.
"""

import dataclasses
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map

from ..config.blocks import AttentionConfig, BlockConfig, MLPConfig, NormConfig, RopeConfig
from ..config.image_config import (
    CLIP_MEAN,
    CLIP_STD,
    DEFAULT_MAX_PIXELS,
    DEFAULT_MIN_PIXELS,
    ImageConfig,
)
from ..config.model_config import ConnectorConfig, DecoderConfig, ModelConfig, VisionConfig
from ..model import Model

_BLOCK_VALUES = 8_388_593
"""A prime number, so that rows cut from the repeated block differ from each other."""
_LAYER_NORM = NormConfig(kind="layer", eps=1e-6, bias=True)
_RMS_NORM = NormConfig(kind="rms", eps=1e-6, bias=False)


def released_config() -> ModelConfig:
    """Return the geometry of the release."""
    return _config(
        tower_heads=16, tower_mlp=4304, tower_layers=27, feature_layers=(24, 18),
        image_size=378, heads=16, groups=8, mlp=6144, layers=28,
        vocabulary=151_936, added=128, context=40_960,
    )  # fmt: skip


def narrow_config() -> ModelConfig:
    """Return a model with the release's head sizes and activations, and little else of it."""
    return _config(
        tower_heads=2, tower_mlp=320, tower_layers=3, feature_layers=(2, 0),
        image_size=126, heads=2, groups=1, mlp=512, layers=3,
        vocabulary=512, added=8, context=8192,
    )  # fmt: skip


def _config(
    *,
    tower_heads: int,
    tower_mlp: int,
    tower_layers: int,
    feature_layers: tuple[int, ...],
    image_size: int,
    heads: int,
    groups: int,
    mlp: int,
    layers: int,
    vocabulary: int,
    added: int,
    context: int,
) -> ModelConfig:
    biases, no_biases = (True, True, True), (False, False, False)
    tower = AttentionConfig(tower_heads, tower_heads, 72, 72**-0.5, biases, True, None, None)
    attention = AttentionConfig(
        heads, groups, 128, 128**-0.5, no_biases, False, _RMS_NORM, _RMS_NORM
    )
    tower_block = BlockConfig(
        tower, MLPConfig(tower_mlp, "gelu_pytorch_tanh", False, True), _LAYER_NORM
    )
    hidden_size = heads * 128
    return ModelConfig(
        tower=VisionConfig(
            hidden_size=tower_heads * 72,
            num_hidden_layers=tower_layers,
            block=tower_block,
            image_size=(image_size, image_size),
            patch_size=14,
            num_channels=3,
            patch_embedding_bias=True,
            final_norm=True,
            feature_layers=feature_layers,
        ),
        connector=ConnectorConfig(
            pad_embed=True,
            pooling=tower,
            pooling_size=(2, 2),
            projector=MLPConfig(mlp, "silu", True, False),
            output_size=hidden_size,
        ),
        decoder=DecoderConfig(
            hidden_size=hidden_size,
            num_hidden_layers=layers,
            block=BlockConfig(attention, MLPConfig(mlp, "silu", True, False), _RMS_NORM),
            vocab_size=vocabulary,
            embedding_size=vocabulary,
            additional_vocab_size=added,
            scale_embeddings=False,
            rope=RopeConfig(theta=1_000_000.0, scaling=None),
            context_size=context,
        ),
        tie_word_embeddings=False,
    )


def released_image_config() -> ImageConfig:
    """Return the release's image settings."""
    return ImageConfig(
        tile_size=(378, 378),
        patch_size=14,
        overlap_margins=(4, 4),
        max_crops=12,
        min_pixels=DEFAULT_MIN_PIXELS,
        max_pixels=DEFAULT_MAX_PIXELS,
        pooling_size=(2, 2),
        use_column_tokens=True,
        do_resize=True,
        interpolation="bilinear",
        antialias=False,
        resize_in_float32=False,
        normalization_method="minmax",
        image_range=(-1.0, 1.0),
        image_mean=CLIP_MEAN,
        image_std=CLIP_STD,
    )


def with_depth(
    config: ModelConfig, tower_layers: int, layers: int, vocabulary: int | None = None
) -> ModelConfig:
    """Return a copy with fewer layers, and perhaps fewer rows of the head and the embedding."""
    vision = dataclasses.replace(
        config.tower,
        num_hidden_layers=tower_layers,
        feature_layers=(tower_layers - 1, max(0, tower_layers - 2)),
    )
    decoder = dataclasses.replace(config.decoder, num_hidden_layers=layers)
    if vocabulary is not None:
        decoder = dataclasses.replace(decoder, vocab_size=vocabulary, embedding_size=vocabulary)
    return dataclasses.replace(config, tower=vision, decoder=decoder)


def random_model(config: ModelConfig, dtype: mx.Dtype = mx.float32, seed: int = 0) -> Model:
    """Return an evaluated model with made-up weights whose activations stay finite.

    Args:
        config: geometry.
        dtype: of all weights.
        seed: of the values. They are cut from one block of random numbers, since drawing
            billions of them would take minutes.
    """
    model = Model(config)
    generator = np.random.default_rng(seed)
    block = generator.standard_normal(_BLOCK_VALUES, dtype=np.float32)

    def draw(array: mx.array) -> mx.array:
        # Matrices keep the scale of what goes through them; vectors act as norms near 1.
        deviation = array.shape[-1] ** -0.5 if array.ndim > 1 else 0.05
        start = int(generator.integers(_BLOCK_VALUES))
        rolled = block[-start:] if array.size <= start else np.roll(block, start)
        values = rolled[: array.size] * np.float32(deviation) + np.float32(array.ndim == 1)
        once = mx.array(values).astype(dtype)
        # Repeated in its own type: in float32, the largest table would take gigabytes.
        drawn = mx.concatenate([once] * -(-array.size // len(values)))[: array.size]
        drawn = drawn.reshape(array.shape)
        mx.eval(drawn)
        return drawn

    parameters: Any = tree_map(draw, model.parameters())
    model.update(parameters)
    model.prepare()
    return model


def quantized(model: Model, bits: int, group_size: int = 64) -> Model:
    """Pack the weights of a model, as far as groups divide them, in place; return it."""

    def packs(_: str, module: nn.Module) -> bool:
        return hasattr(module, "to_quantized") and module.weight.shape[-1] % group_size == 0

    nn.quantize(model, group_size, bits, class_predicate=packs)
    model.prepare()
    return model


def deepen(model: Model, config: ModelConfig) -> Model:
    """Make a model run its layers again and again, to the depth of `config`; return it."""
    depths = config.tower.num_used_layers, config.decoder.num_hidden_layers
    for module, depth in zip((model.vision_tower, model.decoder), depths, strict=True):
        few = module.layers
        module.layers = [few[index % len(few)] for index in range(depth)]
    model.config = config
    model.vision_tower._config = config.tower
    return model
