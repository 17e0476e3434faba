"""Memory: the peak of a 4-bit question, a quantized KV cache, and what Macs have room for.

    python -m benchmarks.memory --part question --layers 0.1 --dtype float32
    python -m benchmarks.memory --part cache
    python -m benchmarks.memory --part macs

A question goes through `stream_generate`, with the model that `--model` names, or with random
weights that the converter has packed. On a CPU, nearly all the time goes into products with packed
weights, on one thread, and `--dtype float32` is ten times as fast as bfloat16; on a GPU, leave it
out.
"""

import argparse
import sys
import time
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from jvlm_mlx import Processor, stream_generate
from jvlm_mlx._mlx_lm import KVCache
from jvlm_mlx.diagnostics.sample_model import random_model
from jvlm_mlx.generation.memory import MAX_TILES, kv_bytes, tile_bytes
from jvlm_mlx.model import Model
from jvlm_mlx.progress import ProgressEvent

from .harness.machine import describe_machine
from .harness.models import (
    add_checkpoint_arguments,
    loaded_checkpoint,
    released_model_config,
)
from .harness.photos import TILES, photo_bytes
from .harness.report import json_line, markdown_table

ALLOWED = 1.25
"""Most that a 4-bit question may take, over weights and KV cache."""
BITS = {"bfloat16": 16.0, "8-bit": 8.5, "4-bit": 4.5}
"""Bits of a weight with scale and bias of its group of 64."""
TOTAL_WEIGHTS = 2.48e9
MACS = {8: 5.3, 16: 10.7}
"""GB of memory and what macOS lets the GPU have of it: two thirds."""


def question(
    model: Model, processor: Processor, tiles: int, group: int, max_tokens: int
) -> dict[str, float]:
    """Measure the peak of one question about one image, in GB.

    Weights and KV cache count with the 2 bytes of a bfloat16 wherever they are not packed,
    also if the model computes in float32: then everything else is twice as large as it would be,
    and what is found is an upper bound.
    """
    arrays: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    weights = sum(
        2 * array.size if mx.issubdtype(array.dtype, mx.floating) else array.nbytes
        for array in arrays.values()
    )
    mx.clear_cache()
    mx.synchronize()
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    start, peaks = time.perf_counter(), {"tiles": 0, "prefill": 0, "answer": 0}

    def progress(event: ProgressEvent) -> None:
        peaks[event.stage] = max(0, mx.get_peak_memory() - held)
        print(
            f"{time.perf_counter() - start:6.0f} s: {event.stage}, {event.done} of {event.total}"
            f" {event.unit}s, {peaks[event.stage] / 1e9:.3f} GB beside the weights at most",
            file=sys.stderr,
            flush=True,
        )

    *_, last = stream_generate(
        model,
        processor,
        "What is this?",
        photo_bytes(tiles),
        progress=progress,
        max_crops=TILES[tiles],
        tile_group_size=group,
        max_tokens=max_tokens,
        stop_token_ids=(),
    )
    progress(ProgressEvent("answer", last.generation_tokens, max_tokens, "token"))
    tokens = last.prompt_tokens + last.generation_tokens
    needed = weights + kv_bytes(model.config, tokens, 2)
    return {
        "weights": weights / 1e9,
        "KV cache": (needed - weights) / 1e9,
        "peak while images are encoded": (weights + peaks["tiles"]) / 1e9,
        "peak until the first token": (weights + peaks["prompt"]) / 1e9,
        "peak": (weights + peaks["answer"]) / 1e9,
        "over": (weights + peaks["answer"]) / needed,
    }


def quantized_cache(layers: float, tokens: int, bits: tuple[int, ...]) -> list[dict[str, Any]]:
    """Measure what a quantized KV cache saves, and the KL divergence of the next tokens."""
    model = random_model(released_model_config(layers))
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
    for position in range(ids.shape[1]):
        logits = model(ids[:, position : position + 1], cache=caches)[0, 0]
        steps.append(logits - mx.logsumexp(logits))
        mx.eval(steps)
    return mx.stack(steps)


def _megabytes(caches: list[Any]) -> float:
    arrays: dict[str, Any] = dict(tree_flatten([cache.state for cache in caches]))
    return sum(array.nbytes for array in arrays.values() if isinstance(array, mx.array)) / 1e6


def macs() -> list[tuple[str, ...]]:
    """Return for each Mac and kind of weights what is left and what fits into it: computed."""
    config = released_model_config()
    rows: list[tuple[str, ...]] = []
    for memory, usable in MACS.items():
        for name, bits in BITS.items():
            weights = TOTAL_WEIGHTS * bits / 8
            kv = kv_bytes(config, 2048, 2)
            left = usable * 1e9 - weights - kv
            tiles = int(left // tile_bytes(config, 2))
            per_token = kv_bytes(config, 1, 2)
            context = min(config.decoder.context_size, int((left + kv) // per_token))
            rows.append(
                (f"{memory} GB", name, f"{weights / 1e9:.2f}", f"{left / 1e9:.2f}",
                 str(min(MAX_TILES, max(0, tiles))), str(max(0, context)))
            )  # fmt: skip
    return rows


def main() -> int:
    """Run one part, print, and return 1 if a question takes more than is allowed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--part", choices=("question", "cache", "macs"), required=True)
    add_checkpoint_arguments(parser)
    parser.add_argument("--tiles", type=int, choices=TILES, default=2, help="of the image")
    parser.add_argument("--tile-group-size", type=int, default=1, help="tiles encoded at once")
    parser.add_argument("--max-tokens", type=int, default=4, help="of the answer")
    parser.add_argument("--tokens", type=int, default=512, help="in the KV cache")
    arguments = parser.parse_args()
    if arguments.part == "macs":
        print("computed, not measured:")
        header = ("Mac", "weights", "GB", "left after 2,048 tokens, GB", "tiles at once", "context")
        print(markdown_table(header, macs()))
        return 0
    if arguments.part == "question":
        with loaded_checkpoint(
            arguments.model, arguments.layers, arguments.dtype, bits=4
        ) as loaded:
            found = question(
                *loaded, arguments.tiles, arguments.tile_group_size, arguments.max_tokens
            )
        over = found.pop("over")
        print(
            markdown_table(
                ("one question", "GB"), [(name, f"{gb:.3f}") for name, gb in found.items()]
            )
        )
        print(f"{over:.3f} times weights and KV cache; {ALLOWED} allowed")
        content = {"machine": describe_machine(), "arguments": vars(arguments)}
        print(json_line("memory", {**content, **found, "over": over}))
        return 0 if over <= ALLOWED else 1
    rows = quantized_cache(arguments.layers, arguments.tokens, (8, 4))
    lines = [(row["bits"], f"{row['megabytes']:.1f}", f"{row['kl']:.2e}") for row in rows]
    print(markdown_table(("bits", "MB", "KL, nats a token"), lines))
    print(json_line("memory", {"machine": describe_machine(), **vars(arguments), "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
