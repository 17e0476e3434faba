"""Count the kernels of a decode step, a prefill chunk, a tile and a merge: no clock, no device.

On a Mac every kernel costs a launch, and in a decode step there is little else to do, so fewer
is faster there. `--against mlx-vlm` counts the peer's with the same method. A second table
counts what the graph does not show: inputs that a layer's kernels copy first.

    python -m benchmarks.kernels --against mlx-vlm
"""

import argparse
from collections import Counter
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from jvlm_mlx._mlx_lm import KVCache
from jvlm_mlx.config.config_reader import ConfigReader
from jvlm_mlx.config.model_config import ModelConfig
from jvlm_mlx.diagnostics.sample_model import random_model
from jvlm_mlx.model import Model

from .harness.copies import count_copies
from .harness.counting import count_kernels
from .harness.models import constant, released_model_config, weightless_model
from .harness.report import json_line, markdown_table
from .random_checkpoint import small_config

PROMPT_TOKENS = 832
CHUNK_TOKENS = 512
MERGED_WINDOWS = 32
BATCH = 3

WORK = {
    "decode step": "token id to next token, after a prompt",
    "prefill chunk": f"{CHUNK_TOKENS} embeddings to the KV cache",
    "tile": "pixels of one tile to vectors of the decoder's width",
    f"merge {MERGED_WINDOWS} vectors": "token ids and vectors to embeddings",
}


def filled_cache(config: ModelConfig, dtype: mx.Dtype) -> list[KVCache]:
    """Return caches that already hold a prompt and have room left."""
    attention = config.decoder.block.attention
    shape = (1, attention.num_key_value_heads, PROMPT_TOKENS + 192, attention.head_dim)
    caches = []
    for _ in range(config.decoder.num_hidden_layers):
        cache = KVCache()
        cache.keys = cache.values = constant(shape, dtype)
        cache.offset = PROMPT_TOKENS
        caches.append(cache)
    return caches


def own_counts(model: Model) -> dict[str, int]:
    """Return this project's kernels by what they are for."""
    config, tile = model.config, _tile(model.config)
    plan = model.plan(tile["image_input_idx"], tile["length"])
    merge_idx = _merge_positions()

    def decode() -> mx.array:
        logits = model(mx.array([[5]]), cache=filled_cache(config, model.dtype))
        return mx.argmax(logits[:, -1], axis=-1)

    def prefill() -> list[mx.array]:
        caches = model.make_cache()
        model(_ids(CHUNK_TOKENS), cache=caches, input_embeddings=_embeddings(config))
        return [array for cache in caches for array in (cache.keys, cache.values)]

    def encode() -> list[mx.array]:
        return list(model.encode_groups(tile["pixel_values"], tile["image_masks"], plan))

    def merge() -> mx.array:
        embeddings = model.decoder.embed(_ids(MERGED_WINDOWS + 2))
        return model.merge(embeddings, _features(config), merge_idx)

    return _counts(decode, prefill, encode, merge)


def own_copies() -> dict[str, int]:
    """Return how many inputs a layer's kernels copy first, by what they are for: at a small size.

    Heads are as wide as the release's, since that chooses the kernels.
    """
    config_json = small_config()
    text, vision = config_json["text_config"], config_json["vision_config"]
    text["block_config"]["attn_config"]["head_dim"] = 128
    vision["block_config"]["attn_config"]["head_dim"] = 72
    model = random_model(ModelConfig.read(ConfigReader(config_json, "config.json")))
    tower, prompt = model.config.tower, np.arange(2, 22)

    def read_prompt(batch: int) -> list[Any]:
        mask = np.ones((batch, len(prompt)), bool)
        mask[1:, :3] = False
        cache = model.make_cache(None if batch == 1 else mask)
        mx.eval(model(np.tile(prompt, (batch, 1)), cache=cache))
        return cache

    def decode(cache: list[Any], batch: int) -> Counter[str]:
        return count_copies(lambda: model(mx.ones((batch, 1), mx.int32), cache=cache))

    layers = len(model.layers)
    pixels = mx.zeros((2, tower.num_patches, tower.patch_values))
    tile = count_copies(lambda: model.vision_tower(pixels))
    return {
        "decode step": decode(read_prompt(1), 1).total() // layers,
        f"decode step, {BATCH} requests": decode(read_prompt(BATCH), BATCH).total() // layers,
        "prefill chunk": count_copies(lambda: read_prompt(1)).total() // layers,
        "tile": tile.total() // tower.num_used_layers,
    }


def peer_counts(model: Model) -> dict[str, int]:
    """Return the peer's kernels by what they are for, for the same work."""
    from .harness.peer import make_peer

    peer, config, tile = make_peer(model), model.config, _tile(model.config)
    positions = np.full((1, 1, MERGED_WINDOWS), -1)
    positions[0, 0] = np.arange(1, MERGED_WINDOWS + 1)

    def decode() -> mx.array:
        caches = filled_cache(config, model.dtype)
        logits = peer.language_model(mx.array([[5]]), cache=caches).logits
        return mx.argmax(logits[:, -1], axis=-1)

    def prefill() -> list[mx.array]:
        caches = model.make_cache()
        ids, embeddings = _ids(CHUNK_TOKENS), _embeddings(config)
        peer.language_model(ids, inputs_embeds=embeddings, cache=caches)
        return [array for cache in caches for array in (cache.keys, cache.values)]

    def encode() -> mx.array:
        return peer.get_image_features(tile["pixel_values"], tile["image_masks"])

    def merge() -> mx.array:
        return peer.get_input_embeddings(
            _ids(MERGED_WINDOWS + 2),
            constant((1, 1, 1, 1), model.dtype),
            cached_image_features=_features(config)[None, None],
            image_input_idx=mx.array(positions),
        ).inputs_embeds

    return _counts(decode, prefill, encode, merge)


def _counts(*builds: Callable[[], Any]) -> dict[str, int]:
    return {name: count_kernels(build).total() for name, build in zip(WORK, builds, strict=True)}


def _tile(config: ModelConfig) -> dict[str, Any]:
    tower = config.tower
    rows, columns = (
        -(-side // step)
        for side, step in zip(tower.patch_grid, config.connector.pooling_size, strict=True)
    )
    return {
        "pixel_values": constant((1, 1, tower.num_patches, tower.patch_values), mx.float32),
        "image_masks": constant((1, 1, tower.num_patches), mx.int8),
        "image_input_idx": np.arange(1, rows * columns + 1).reshape(1, 1, -1),
        "length": rows * columns + 2,
    }


def _merge_positions() -> Any:
    # Token 0 and the last one belong to no image.
    positions = np.arange(-1, MERGED_WINDOWS + 1)
    positions[-1] = -1
    return positions[None]


def _ids(length: int) -> mx.array:
    return constant((1, length), mx.int32)


def _embeddings(config: ModelConfig) -> mx.array:
    return constant((1, CHUNK_TOKENS, config.decoder.hidden_size), mx.float32)


def _features(config: ModelConfig) -> mx.array:
    return constant((MERGED_WINDOWS, config.decoder.hidden_size), mx.float32)


def main() -> None:
    """Count from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--against", choices=("mlx-vlm",), help="count the peer's as well")
    parser.add_argument("--layers", type=float, default=1.0, help="fraction of the layers to keep")
    arguments = parser.parse_args()
    model = weightless_model(released_model_config(arguments.layers))
    counts = {"jvlm-mlx": own_counts(model)}
    if arguments.against:
        from .harness.peer import peer_version

        counts[f"mlx-vlm {peer_version()}"] = peer_counts(model)
    rows = [(name, *(each[name] for each in counts.values()), WORK[name]) for name in WORK]
    print(markdown_table(("kernels", *counts, "what"), rows))
    copies = own_copies()
    print()
    print(
        markdown_table(
            ("inputs that a layer's kernels copy first", "jvlm-mlx"), list(copies.items())
        )
    )
    print(json_line("kernels", {"kernels": counts, "copies": copies}))


if __name__ == "__main__":
    main()
