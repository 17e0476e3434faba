"""Whether this device computes what it should: a small model against the CPU's plain functions."""

from collections.abc import Iterator

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from ..config.blocks import AttentionConfig, BlockConfig, MLPConfig, NormConfig
from ..config.model_config import ConnectorConfig, DecoderConfig, ModelConfig, VisionConfig
from ..config.rope_config import RopeConfig
from ..model import Model, ops
from .findings import Finding

TOLERANCES = {mx.float32: 0.02, mx.bfloat16: 0.25}
"""Of logits that deviate by about 1. Some GPUs round factors to 11 bits in float32, which moves the
largest by 0.005; bfloat16 has 8 bits, which moves it by 0.08 on a CPU. Three to four times as much
is allowed, since sums in another order round elsewhere. A kernel that leaves out a mask or a
position, or takes a wrong head, is off by more than twice the larger of the two."""

_LAYER_NORM = NormConfig(kind="layer", eps=1e-6, bias=True)
_RMS_NORM = NormConfig(kind="rms", eps=1e-6, bias=False)


def small_config() -> ModelConfig:
    """Return a model with the release's head sizes and activations, and little else of it."""
    biases = (True, True, True)
    tower = AttentionConfig(2, 2, 72, 72**-0.5, biases, True, None, None)
    decoder = AttentionConfig(
        2, 1, 128, 128**-0.5, (False, False, False), False, _RMS_NORM, _RMS_NORM
    )
    return ModelConfig(
        tower=VisionConfig(
            hidden_size=144,
            num_hidden_layers=3,
            block=BlockConfig(tower, MLPConfig(320, "gelu_pytorch_tanh", False, True), _LAYER_NORM),
            image_size=(126, 126),
            patch_size=14,
            num_channels=3,
            patch_embedding_bias=True,
            final_norm=True,
            feature_layers=(2, 0),
        ),
        connector=ConnectorConfig(
            pad_embed=True,
            pooling=tower,
            pooling_size=(2, 2),
            projector=MLPConfig(256, "silu", True, False),
            output_size=256,
        ),
        decoder=DecoderConfig(
            hidden_size=256,
            num_hidden_layers=3,
            block=BlockConfig(decoder, MLPConfig(512, "silu", True, False), _RMS_NORM),
            vocab_size=512,
            embedding_size=512,
            additional_vocab_size=8,
            scale_embeddings=False,
            rope=RopeConfig(theta=1_000_000.0, scaling=None),
            context_size=4096,
        ),
        tie_word_embeddings=False,
    )


def small_model(dtype: mx.Dtype) -> Model:
    """Return the small model with the same made-up weights every time."""
    model = Model(small_config())
    generator = np.random.default_rng(0)
    weights = []
    parameters: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    for name, array in parameters.items():
        values = generator.standard_normal(array.shape, np.float32)
        values *= array.shape[-1] ** -0.5 if array.ndim > 1 else 0.05
        weights.append((name, mx.array(values + (array.ndim == 1)).astype(dtype)))
    model.update(tree_unflatten(weights))
    mx.eval(model.parameters())
    return model


def logits(model: Model) -> mx.array:
    """Return logits (24, vocabulary) of a made-up image and words, and of one decoded token."""
    generator = np.random.default_rng(1)
    tower = model.config.tower
    pixels = generator.uniform(-1, 1, (1, 2, tower.num_patches, tower.patch_values))
    positions = np.full((1, 2, 25), -1)
    positions[0, 0, :10], positions[0, 1, 5:10] = np.arange(1, 11), np.arange(12, 17)
    ids = generator.integers(0, 512, (1, 23))
    cache = model.make_cache()
    prompt = model(
        ids,
        pixel_values=pixels.astype(np.float32),
        image_masks=np.ones((1, 2, tower.num_patches), np.int8),
        image_input_idx=positions,
        cache=cache,
    )
    step = model(np.array([[7]]), cache=cache)
    return mx.concatenate([prompt[0], step[0]]).astype(mx.float32)


def difference(dtype: mx.Dtype) -> float:
    """Return the largest difference of this device's logits to the CPU's in float32.

    On a machine without a GPU, the CPU's own arithmetic is compared with MLX's functions.
    """
    found = np.array(logits(small_model(dtype)))
    # The weights are rounded as the compared model's are; only the arithmetic differs.
    reference = small_model(dtype)
    with mx.stream(mx.cpu), ops.mlx_kernels_only():
        reference.set_dtype(mx.float32)
        expected = np.array(logits(reference))
    return float(np.abs(found - expected).max())


def check_equality() -> Iterator[Finding]:
    """Yield how far results are from what they should be."""
    on_gpu = mx.default_device().type == mx.gpu
    dtypes = list(TOLERANCES) if on_gpu else [mx.float32]
    for dtype in dtypes:
        name = str(dtype).rpartition(".")[2]
        found = difference(dtype)
        yield Finding(
            f"small model, {name}",
            f"largest difference {found:.1e}, {TOLERANCES[dtype]:.0e} allowed",
            None
            if found <= TOLERANCES[dtype]
            else "answers of this device are wrong: update MLX and the system; until then set"
            " mx.set_default_device(mx.cpu), and please report this",
        )
