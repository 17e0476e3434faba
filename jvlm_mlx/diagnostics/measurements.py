"""How long whole stages take, beside what the performance model predicts for this machine.

The stages are run by the model's own code, at the release's shapes, as far as the machine does that
in time. What the model predicts from the rates of plain operations is what a stage should take; far
below, something else is in the way.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import mlx.core as mx
import numpy as np
from PIL import Image

from ..config.model_config import ModelConfig
from ..model import Model
from ..model.windows import window_patches
from ..processing.tiles import cut_tiles, resize_source
from ..processing.tiling import plan_layout
from ..units import plural
from . import performance_model as performance
from .performance_model import LONG_PROMPT
from .rates import Effort, chained, fastest, measure_host_rates
from .report import SLOW, Finding, Skipped, guarded, time_text
from .roofline import Rates, Stage, WeightFormat, buffer_limits
from .sample_model import (
    deepen,
    quantized,
    random_model,
    released_config,
    released_image_config,
    with_depth,
)

TILE_GROUP = 4
IMAGE_SIZE = (1000, 1500)
"""Height and width of a photo that becomes 12 tiles and a thumbnail."""
_TOO_LONG = 5
"""Times the effort."""
TOWER_SIZES = ((13, 25), (4, 25), (1, 25), (1, 8), (1, 2), (1, 1))
"""Tiles and layers, the release first."""
PREFILL_SIZES = ((1781, 28), (1781, 8), (1781, 2), (1781, 1), (512, 1), (128, 1), (32, 1))
"""Tokens and layers."""
DECODE_DEPTHS = (28, 8, 2, 1)


class StageRuns:
    """Runs the stages of the release, or less of it, and compares times with predictions.

    Args:
        form: of the weights.
        dtype: that is computed in.
        rates: of this machine, in this format.
        effort: how much is run.
        suspect: says from a stage's name why it may be slow.
    """

    def __init__(
        self,
        form: WeightFormat,
        dtype: mx.Dtype,
        rates: Rates,
        effort: Effort,
        suspect: Callable[[str], str],
    ) -> None:
        self.form, self.dtype, self.rates, self.effort = form, dtype, rates, effort
        self._suspect = suspect
        few = effort.distinct_layers
        self.config = with_depth(released_config(), max(2, few), few, effort.vocabulary)
        architecture = str(mx.device_info().get("architecture", ""))
        self.limits = buffer_limits(architecture, os.environ)

    def check(self) -> Iterator[Finding]:
        """Yield each stage, predicted and measured."""
        model = random_model(self.config, self.dtype)
        if self.form.bits is not None:
            quantized(model, self.form.bits, self.form.group_size)
        stages = [self.prefill, self.head, self.decode]
        if self.form.bits is None:
            stages = [self.tower, self.connector, *stages]
        elif mx.default_device().type == mx.cpu:
            # Products of packed weights with many rows are hopeless there.
            stages = [self.head, self.decode]
        for stage in stages:
            name = f"time: {stage.__name__}, {self.form.name}"
            yield from guarded(name, partial(stage, model))
            mx.clear_cache()

    def tower(self, model: Model) -> Iterator[Finding]:
        """Yield the time of all groups of tiles."""

        def predicted(tiles: int, depth: int) -> list[Stage]:
            config = self._deep(depth, 1)
            groups = [TILE_GROUP] * (tiles // TILE_GROUP)
            groups += [tiles % TILE_GROUP] * (tiles % TILE_GROUP > 0)
            return [performance.tower(config, group, self.form) for group in groups]

        (tiles, depth), stages = self._largest(TOWER_SIZES, predicted)
        deepen(model, self._deep(depth, 1))
        vision = self.config.tower
        pixels = mx.random.uniform(-1, 1, (tiles, vision.num_patches, vision.patch_values))
        mx.eval(pixels)

        def run() -> None:
            for first in range(0, tiles, TILE_GROUP):
                mx.eval(model.vision_tower(pixels[first : first + TILE_GROUP]))

        yield self._finding(
            "tower", f"{plural(tiles, 'tile')}, {plural(depth, 'layer')}", stages, fastest(run)
        )

    def connector(self, model: Model) -> Iterator[Finding]:
        """Yield the time of the windows of a group of tiles."""
        vision = self.config.tower
        patches, inside = window_patches(vision.patch_grid, self.config.connector.pooling_size)
        sizes = ((TILE_GROUP, len(patches)), (1, len(patches)), (1, 20))

        def predicted(tiles: int, windows: int) -> list[Stage]:
            return [performance.connector(self.config, tiles * windows, self.form)]

        (tiles, windows), stages = self._largest(sizes, predicted)
        features = mx.random.normal((tiles, vision.num_patches, vision.feature_size))
        masks = mx.ones((tiles, vision.num_patches), mx.int8)
        first = np.arange(tiles)[:, None, None] * vision.num_patches
        indices = mx.array((first + patches[:windows]).reshape(-1, patches.shape[1]))
        kept = mx.array(np.tile(inside[:windows], (tiles, 1)))
        features = features.astype(self.dtype)
        mx.eval(features, masks, indices, kept)
        seconds = fastest(lambda: model.connector(features, masks, indices, kept))
        yield self._finding("connector", f"{tiles * windows} windows", stages, seconds)

    def prefill(self, model: Model) -> Iterator[Finding]:
        """Yield the time of a prompt."""

        def predicted(tokens: int, depth: int) -> list[Stage]:
            return [performance.prefill(self._deep(1, depth), tokens, self.form)]

        (tokens, depth), stages = self._largest(PREFILL_SIZES, predicted)
        deepen(model, self._deep(1, depth))
        embeddings = mx.random.normal((1, tokens, self.config.decoder.hidden_size))
        embeddings = embeddings.astype(self.dtype)
        mx.eval(embeddings)

        def run() -> list[mx.array]:
            cache = model.make_cache()
            hidden = model.decoder(embeddings, cache)
            return [hidden[:, -1], *[one for layer in cache for one in (layer.keys, layer.values)]]

        yield self._finding(
            "prefill", f"{tokens:,} tokens, {plural(depth, 'layer')}", stages, fastest(run)
        )

    def head(self, model: Model) -> Iterator[Finding]:
        """Yield the time of the most probable token of one position."""
        stage = performance.head(self.config, self.form)
        hidden = mx.random.normal((1, self.config.decoder.hidden_size)).astype(self.dtype)

        def step(x: mx.array, _: int) -> mx.array:
            # The next depends on this one's result, and is of the same size.
            token = mx.argmax(model.head(x), axis=-1, keepdims=True)
            return mx.where(token < 0, mx.zeros((), x.dtype), x)

        seconds = chained(step, hidden, self.effort.seconds)
        size = f"{self.config.decoder.vocab_size:,} tokens"
        yield self._finding("head", size, [stage], seconds)

    def decode(self, model: Model) -> Iterator[Finding]:
        """Yield the time of a decode step after the long prompt."""
        context = LONG_PROMPT.tokens

        def predicted(depth: int) -> list[Stage]:
            return [performance.decode_step(self._deep(1, depth), context, self.form)]

        (depth,), stages = self._largest([(depth,) for depth in DECODE_DEPTHS], predicted)
        deepen(model, self._deep(1, depth))
        attention = self.config.decoder.block.attention
        shape = (1, attention.num_key_value_heads, context, attention.head_dim)
        cache = model.make_cache()
        for layer in cache:
            layer.update_and_fetch(*(mx.random.normal(shape).astype(self.dtype) for _ in range(2)))
        mx.eval([layer.state for layer in cache])

        def step(token: mx.array, _: int) -> mx.array:
            token = mx.argmax(model(token, cache=cache)[:, -1:], axis=-1)
            mx.async_eval(token)  # as in an answer, the next step is prepared meanwhile
            return token

        seconds = chained(step, mx.array([[5]]), self.effort.seconds)
        yield self._finding("decode step", plural(depth, "layer"), stages, seconds)

    def _deep(self, tower: int, decoder: int) -> ModelConfig:
        """Return the release's config with so many layers that run."""
        return with_depth(released_config(), tower, decoder, self.effort.vocabulary)

    def _largest(
        self, sizes: Sequence[tuple[int, ...]], predicted: Callable[..., list[Stage]]
    ) -> tuple[tuple[int, ...], list[Stage]]:
        """Return the first size whose prediction is within the effort, and its stages.

        Raises:
            Skipped: even the smallest takes many times as long.
        """
        for size in sizes:
            stages = predicted(*size)
            seconds = sum(stage.seconds(self.rates) for stage in stages)
            if seconds <= self.effort.seconds:
                break
        if seconds > _TOO_LONG * self.effort.seconds:
            raise Skipped(f"not measured: {time_text(seconds)} for the least of it")
        return size, stages

    def _finding(self, name: str, size: str, stages: list[Stage], seconds: float) -> Finding:
        return stage_finding(
            f"time: {name}, {self.form.name}", size, stages, self.rates, seconds,
            limits=self.limits, suspect=partial(self._suspect, name),
        )  # fmt: skip


def stage_finding(
    name: str,
    size: str,
    stages: list[Stage],
    rates: Rates,
    seconds: float,
    *,
    limits: tuple[int, int],
    suspect: Callable[[], str],
) -> Finding:
    """Return what a stage was predicted to take and what it took."""
    predicted = sum(stage.seconds(rates) for stage in stages)
    fraction = predicted / seconds
    return Finding(
        name,
        f"predicted {time_text(predicted)}, measured {time_text(seconds)}, {fraction:.0%} ({size})",
        suspect=suspect() if fraction < SLOW else None,
        data={
            "size": size,
            "predicted_seconds": predicted,
            "measured_seconds": seconds,
            "fraction": fraction,
            "flops": sum(stage.flops for stage in stages),
            "bytes": sum(stage.nbytes for stage in stages),
            "kernels": sum(stage.launches for stage in stages),
            "command_buffers": sum(stage.command_buffers(limits) for stage in stages),
        },
    )


def check_preprocessing(suspect: Callable[[str], str]) -> Iterator[Finding]:
    """Yield the time that numpy takes for a photo of 12 tiles and a thumbnail."""
    config = released_image_config()
    layout = plan_layout(*IMAGE_SIZE, config)
    noise = np.random.default_rng(0).integers(0, 256, (*IMAGE_SIZE, 3), np.uint8)
    image = Image.fromarray(noise)
    stage = performance.preprocessing(IMAGE_SIZE, layout, config)
    seconds = fastest(
        lambda: cut_tiles(resize_source(image, layout, config), layout, config) is None
    )
    yield stage_finding(
        "time: preprocessing", f"{layout.num_tiles} tiles", [stage], measure_host_rates(), seconds,
        limits=(1, 1), suspect=partial(suspect, "preprocessing"),
    )  # fmt: skip
