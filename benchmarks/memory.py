"""Memory: the peak of a 4-bit question, a quantized KV cache, and what Macs have room for.

python -m benchmarks.memory --part question --layers 0.1
python -m benchmarks.memory --part cache
python -m benchmarks.memory --part macs
"""

import argparse
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import KVCache

from jvlm_mlx.generate.budget import MOST_TILES, kv_bytes, tile_bytes
from jvlm_mlx.model import Model

from .common.geometry import random_model, released_settings
from .common.machine import describe_machine
from .common.photos import photo_inputs
from .common.report import json_line, table

ALLOWED = 1.25
"""Most that a 4-bit question may take, over weights and KV cache."""
BITS = {"bfloat16": 16.0, "8-bit": 8.5, "4-bit": 4.5}
"""Bits of a weight with its share of scale and bias, in groups of 64."""
TOTAL_WEIGHTS = 2.48e9
MACS = {8: 5.3, 16: 10.7}
"""GB of memory and what macOS lets the GPU have of it: two thirds."""


def question(layers: float, tiles: int, group: int) -> dict[str, float]:
    """Measure the peak of one question to a 4-bit model in bfloat16, in GB."""
    model = random_model(released_settings(layers), mx.bfloat16)
    nn.quantize(model, 64, 4, class_predicate=_divisible)
    mx.eval(model.parameters())
    mx.clear_cache()
    weights = sum(array.nbytes for array in dict(tree_flatten(model.parameters())).values())
    inputs = photo_inputs(tiles)
    tokens = inputs.input_ids.shape[1]
    mx.synchronize()
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    features = []
    plan = model.plan(inputs.image_input_idx, tokens, group)
    for part in model.encode_groups(inputs.pixel_values, inputs.image_masks, plan):
        features.append(part)
        mx.eval(part)
    encoded = mx.get_peak_memory() - held
    embeddings = model.decoder.embed(mx.array(inputs.input_ids))
    embeddings = model.merge(embeddings, mx.concatenate(features), plan.sources)
    mx.eval(embeddings)
    del features, part
    cache = model.make_cache()
    model(inputs.input_ids, input_embeddings=embeddings, cache=cache)
    mx.eval([layer.state for layer in cache])
    peak = mx.get_peak_memory() - held
    needed = weights + kv_bytes(model.settings, tokens, 2)
    return {
        "weights": weights / 1e9,
        "kv": (needed - weights) / 1e9,
        "encoding": encoded / 1e9,
        "peak": (weights + peak) / 1e9,
        "over": (weights + peak) / needed,
    }


def _divisible(_: str, module: nn.Module) -> bool:
    return hasattr(module, "to_quantized") and module.weight.shape[-1] % 64 == 0


def quantized_cache(layers: float, tokens: int, bits: tuple[int, ...]) -> list[dict[str, Any]]:
    """Measure what a quantized KV cache saves, and the KL divergence of the next tokens."""
    model = random_model(released_settings(layers))
    ids = mx.random.randint(0, 100_000, (1, tokens + 16), key=mx.random.key(0))
    full = model.make_cache()
    model(ids[:, :tokens], cache=full)
    mx.eval([cache.state for cache in full])
    expected = _log_probabilities(model, ids[:, tokens:], [_copy(cache) for cache in full])
    rows: list[dict[str, Any]] = [{"bits": 32, "megabytes": _megabytes(full), "kl": 0.0}]
    for each in bits:
        caches = [cache.to_quantized(group_size=64, bits=each) for cache in full]
        rows.append({"bits": each, "megabytes": _megabytes(caches), "kl": 0.0})
        found = _log_probabilities(model, ids[:, tokens:], caches)
        kl = mx.sum(mx.exp(expected) * (expected - found), axis=-1)
        rows[-1]["kl"] = mx.mean(kl).item()
    return rows


def _copy(cache: KVCache) -> KVCache:
    copied = KVCache()
    copied.update_and_fetch(*cache.state[:2])
    return copied


def _log_probabilities(model: Model, ids: mx.array, caches: list[Any]) -> mx.array:
    steps = []
    for place in range(ids.shape[1]):
        logits = model(ids[:, place : place + 1], cache=caches)[0, 0]
        steps.append(logits - mx.logsumexp(logits))
        mx.eval(steps)
    return mx.stack(steps)


def _megabytes(caches: list[Any]) -> float:
    arrays: dict[str, Any] = dict(tree_flatten([cache.state for cache in caches]))
    return sum(array.nbytes for array in arrays.values() if isinstance(array, mx.array)) / 1e6


def macs() -> list[tuple[str, ...]]:
    """Return for each Mac and kind of weights what is left and what fits into it: computed."""
    settings = released_settings()
    rows: list[tuple[str, ...]] = []
    for memory, usable in MACS.items():
        for name, bits in BITS.items():
            weights = TOTAL_WEIGHTS * bits / 8
            kv = kv_bytes(settings, 2048, 2)
            left = usable * 1e9 - weights - kv
            tiles = int(left // tile_bytes(settings, 2))
            per_token = kv_bytes(settings, 1, 2)
            context = min(settings.decoder.context_size, int((left + kv) // per_token))
            rows.append(
                (f"{memory} GB", name, f"{weights / 1e9:.2f}", f"{left / 1e9:.2f}",
                 str(min(MOST_TILES, max(0, tiles))), str(max(0, context)))
            )  # fmt: skip
    return rows


def main() -> None:
    """Run one part from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--part", choices=("question", "cache", "macs"), required=True)
    parser.add_argument("--layers", type=float, default=1.0, help="share of the layers to keep")
    parser.add_argument("--tiles", type=int, default=5, help="of the picture")
    parser.add_argument("--tile-group-size", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=512, help="in the KV cache")
    arguments = parser.parse_args()
    if arguments.part == "macs":
        print("computed, not measured:")
        header = ("Mac", "weights", "GB", "left after 2,048 tokens, GB", "tiles at once", "context")
        print(table(header, macs()))
        return
    if arguments.part == "question":
        found = question(arguments.layers, arguments.tiles, arguments.tile_group_size)
        print(table(("GB", "4-bit"), [(name, f"{value:.3f}") for name, value in found.items()]))
        print(f"over weights and KV: {found['over']:.3f}, allowed {ALLOWED}")
        print(json_line("memory", {"machine": describe_machine(), **vars(arguments), **found}))
        return
    rows = quantized_cache(arguments.layers, arguments.tokens, (8, 4))
    lines = [(row["bits"], f"{row['megabytes']:.1f}", f"{row['kl']:.2e}") for row in rows]
    print(table(("bits", "MB", "KL, nats a token"), lines))
    print(json_line("memory", {"machine": describe_machine(), **vars(arguments), "rows": rows}))


if __name__ == "__main__":
    main()
