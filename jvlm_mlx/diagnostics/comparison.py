"""One model twice, on this device and as the CPU's plain functions compute it, and what to compare.

Both sides have the same weights, rounded to the type that is examined; the reference computes with
them in float32, on the CPU, with nothing compiled. What is compared is the relative error of each
row (a patch, a window, a token), and the largest counts: one wrong row among a thousand shows.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt
from mlx.utils import tree_unflatten

from .. import _mlx_lm
from ..config.model_config import ModelConfig
from ..model import Model, ops
from ..model.windows import window_patches
from .sample_model import quantized, random_model

PROMPT = 24
"""Tokens of most checks."""

Cache = list[Any]
Run = Callable[[Model], mx.array]
"""Computes rows with a model: (..., width)."""


@contextmanager
def reference_arithmetic() -> Iterator[None]:
    """Compute on the CPU with MLX's plain functions.

    Nothing is compiled meanwhile: that would call the system's C++ compiler, which on a new Mac
    opens a dialog.
    """
    mx.disable_compile()
    try:
        with mx.stream(mx.cpu), ops.mlx_kernels_only():
            yield
    finally:
        mx.enable_compile()


def row_error(found: mx.array, expected: mx.array) -> float:
    """Return the largest relative error of a row; infinite where a number is not finite."""
    one, other = (
        np.array(array.astype(mx.float32), np.float64).reshape(-1, array.shape[-1])
        for array in (found, expected)
    )
    if not np.isfinite(one).all():
        return float("inf")
    lengths = np.maximum(np.linalg.norm(other, axis=-1), np.finfo(float).tiny)
    return float((np.linalg.norm(one - other, axis=-1) / lengths).max())


class Sample:
    """A model with random weights in one type, packed or not, and its reference in float32."""

    def __init__(self, config: ModelConfig, dtype: mx.Dtype, bits: int | None = None) -> None:
        self.config = config
        self.dtype = dtype
        self.model = random_model(config, dtype)
        if bits is not None:
            quantized(self.model, bits)

    @cached_property
    def reference(self) -> Model:
        """The same weights in float32, unpacked; evaluated on the CPU."""
        model = Model(self.config)
        with reference_arithmetic():
            weights = []
            for path, module in self.model.named_modules():
                arrays: dict[str, mx.array] = dict(module.parameters())
                if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding):
                    arrays["weight"] = mx.dequantize(
                        arrays["weight"],
                        arrays.pop("scales").astype(mx.float32),
                        arrays.pop("biases").astype(mx.float32),
                        group_size=module.group_size,
                        bits=module.bits,
                    )
                weights += [
                    (f"{path}.{name}", array.astype(mx.float32))
                    for name, array in arrays.items()
                    if isinstance(array, mx.array)
                ]
            model.update(tree_unflatten(weights))
            model.prepare()
        return model

    def error(self, run: Run, expected: Run | None = None) -> float:
        """Return how far `run` is on this device from `expected`, or itself, of the reference."""
        found = run(self.model)
        mx.eval(found)
        with reference_arithmetic():
            right = (expected or run)(self.reference)
            mx.eval(right)
        return row_error(found, right)

    def random(self, *shape: int, seed: int = 1) -> mx.array:
        """Return the same normal numbers in float32 every time."""
        values = np.random.default_rng(seed).standard_normal(shape, np.float32)
        return mx.array(values)

    def token_ids(self, rows: int = 1, length: int = PROMPT) -> npt.NDArray[np.int64]:
        """Return made-up tokens (rows, length)."""
        size = self.config.decoder.vocab_size
        return np.random.default_rng(2).integers(0, size, (rows, length))

    # The stages, with inputs that do not depend on the stage before.

    def tower(self, model: Model) -> mx.array:
        """Return the features of a tile."""
        vision = self.config.tower
        return model.vision_tower(self.random(1, vision.num_patches, vision.patch_values))

    def connector(self, model: Model) -> mx.array:
        """Return the vectors of all windows of a tile with padding."""
        vision = self.config.tower
        patches, inside = window_patches(vision.patch_grid, self.config.connector.pooling_size)
        masks = mx.array(np.arange(vision.num_patches) % 3 - 1)[None]
        features = self.random(1, vision.num_patches, vision.feature_size)
        return model.connector(features, masks, mx.array(patches), mx.array(inside))

    def hidden(self, model: Model, length: int = PROMPT, chunk: int | None = None) -> mx.array:
        """Return hidden states of a prompt, read at once or in chunks."""
        embeddings, cache = model.decoder.embed(self.token_ids(length=length)), model.make_cache()
        starts = range(0, length, chunk or length)
        chunks = [model.decoder(embeddings[:, at : at + (chunk or length)], cache) for at in starts]
        return mx.concatenate(chunks, axis=1)

    def head(self, model: Model) -> mx.array:
        """Return logits of a hidden state."""
        hidden = self.random(1, self.config.decoder.hidden_size)
        return model.head(hidden.astype(model.dtype))

    def answer(self, model: Model) -> mx.array:
        """Return logits of a prompt with an image, and of one decoded token."""
        vision, windows = self.config.tower, 5
        count = int(np.prod([-(-side // 2) for side in vision.patch_grid]))
        positions = np.full((1, 1, count), -1)
        positions[0, 0, :windows] = np.arange(1, windows + 1)
        cache = model.make_cache()
        prompt = model(
            self.token_ids(),
            pixel_values=np.array(self.random(1, 1, vision.num_patches, vision.patch_values)),
            image_masks=np.ones((1, 1, vision.num_patches), np.int8),
            image_input_idx=positions,
            cache=cache,
        )
        return mx.concatenate([prompt[0], model(np.array([[7]]), cache=cache)[0]])

    # What the decoder meets beside its first prompt.

    def filled_cache(self, model: Model, tokens: int) -> Cache:
        """Return a cache with made-up keys and values of so many tokens."""
        attention = self.config.decoder.block.attention
        shape = (1, attention.num_key_value_heads, tokens, attention.head_dim)
        cache = model.make_cache()
        for index, layer in enumerate(cache):
            keys, values = (self.random(*shape, seed=10 * index + one) for one in (3, 4))
            layer.update_and_fetch(keys.astype(model.dtype), values.astype(model.dtype))
        return cache

    def after(self, tokens: int, length: int, model: Model) -> mx.array:
        """Return hidden states of `length` tokens that follow others in the cache."""
        ids = self.token_ids(length=length)
        return model.decoder(model.decoder.embed(ids), self.filled_cache(model, tokens))

    def batch(self, rows: int, model: Model) -> mx.array:
        """Return hidden states of a step of a left-padded batch, after its prompt."""
        ids, lengths = self.token_ids(rows), self._lengths(rows)
        mask = np.arange(PROMPT) >= PROMPT - lengths[:, None]
        cache = model.make_cache(mask)
        mx.eval(model.decoder(model.decoder.embed(ids), cache))
        return model.decoder(model.decoder.embed(ids[:, :1]), cache)[:, -1]

    def single_rows(self, rows: int, model: Model) -> mx.array:
        """Return the same, row by row without padding."""
        found = []
        for ids, length in zip(self.token_ids(rows), self._lengths(rows), strict=True):
            cache = model.make_cache()
            mx.eval(model.decoder(model.decoder.embed(ids[None, PROMPT - length :]), cache))
            found.append(model.decoder(model.decoder.embed(ids[None, :1]), cache)[:, -1])
        return mx.concatenate(found)

    @staticmethod
    def _lengths(rows: int) -> npt.NDArray[np.int64]:
        return PROMPT - np.arange(rows) % 7

    def rotating(self, model: Model) -> mx.array:
        """Return hidden states of steps that rotate through a window behind the prompt."""
        window = PROMPT + 8
        cache = [
            _mlx_lm.RotatingKVCache(max_size=window, keep=PROMPT) for _ in model.decoder.layers
        ]
        ids = self.token_ids(length=PROMPT + 20)
        mx.eval(model.decoder(model.decoder.embed(ids[:, :PROMPT]), cache))
        steps = []
        for place in range(PROMPT, ids.shape[1]):
            steps.append(model.decoder(model.decoder.embed(ids[:, place : place + 1]), cache)[0])
            mx.eval(steps)
        return mx.concatenate(steps)

    def packed_cache(self, bits: int, model: Model) -> mx.array:
        """Return hidden states of a step over a quantized cache, the same packed values in both."""
        cache = [
            layer.to_quantized(group_size=64, bits=bits)
            for layer in self.filled_cache(self.model, 300)
        ]
        for layer in cache if model is not self.model else ():
            for name in ("keys", "values"):
                packed, *floats = getattr(layer, name)
                setattr(layer, name, (packed, *(one.astype(mx.float32) for one in floats)))
        return model.decoder(model.decoder.embed(self.token_ids(length=1)), cache)
