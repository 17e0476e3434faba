"""How many tiles may be encoded at once within a memory budget."""

import re

import mlx.core as mx
from mlx.utils import tree_flatten

from ..errors import RequestError
from ..model import Model, cpu
from ..settings.model import ModelSettings
from .options import GenerationOptions

MOST_TILES = 16
"""More at once are not faster: one already fills a GPU's matrix units for most of its time."""

_OPERATIONS_IN_FLIGHT = 10
"""Results that exist at once, fitted to measured peaks: MLX allocates ahead of what it computes."""

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}

SCORES_BYTES = 6 * cpu.BLOCK_BYTES
"""Attention scores on a CPU, and what becomes of them on their way to weights: a block at a time,
however many tiles. A GPU's fused attention has none."""


def memory_bytes(text: str) -> int:
    """Return the bytes that a text like `8GB`, `7.5 GiB` or `6000000000` stands for.

    Raises:
        RequestError: it is no size, or not above 0.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]I?)?B?\s*", text.upper())
    size = int(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if size < 1:
        raise RequestError(f"max_memory is {text!r}; give a size like 8GB or 500MB")
    return size


def tile_bytes(settings: ModelSettings, value_bytes: int) -> int:
    """Return the most memory that one more tile of a group takes, in bytes.

    Of every patch: the pixels in float32; the features that are kept and joined; the residual
    stream before and after; and results of operations in flight, none of which is wider than the
    MLP or the fused projection. Attention scores are not among them; see `SCORES_BYTES`.

    Args:
        settings: of the model.
        value_bytes: of an activation.
    """
    tower = settings.tower
    attention = tower.block.attention
    widest = max(
        tower.block.mlp.intermediate_size, attention.query_size + 2 * attention.key_value_size
    )
    values = _OPERATIONS_IN_FLIGHT * widest + 2 * tower.feature_size + 2 * tower.hidden_size
    return tower.num_patches * (values * value_bytes + tower.patch_values * 4)


def kv_bytes(settings: ModelSettings, tokens: int, value_bytes: int) -> int:
    """Return the bytes of the keys and values of so many tokens."""
    decoder = settings.decoder
    width = 2 * decoder.num_hidden_layers * decoder.block.attention.key_value_size
    return tokens * width * value_bytes


def choose_tile_group_size(model: Model, options: GenerationOptions, tokens: int = 0) -> int:
    """Return how many tiles to encode at once.

    Without `max_memory` it is `tile_group_size`. With it, as many as fit beside the weights and
    the keys and values, and at most `MOST_TILES`.

    Args:
        model: whose weights are in memory.
        options: of the request.
        tokens: of the prompt, if they are known yet.

    Raises:
        RequestError: not even one tile fits.
    """
    if options.max_memory is None:
        return options.tile_group_size
    size: int = model.dtype.size
    parameters: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    weights = sum(array.nbytes for array in parameters.values())
    cache = kv_bytes(model.settings, tokens + options.max_tokens, size)
    one = tile_bytes(model.settings, size)
    needed = weights + cache + SCORES_BYTES + one
    fitting = (options.max_memory - needed) // one + 1
    if fitting < 1:
        raise RequestError(
            f"max_memory is {options.max_memory / 1e9:.2f} GB, but weights ({weights / 1e9:.2f}),"
            f" keys and values ({cache / 1e9:.2f}) and one tile ({one / 1e9:.2f}) need"
            f" {needed / 1e9:.2f}: allow more, or take a model of fewer bits"
        )
    return min(int(fitting), MOST_TILES)
