"""How many tiles and tokens may be computed at once within a memory budget."""

from dataclasses import dataclass

import mlx.core as mx
from mlx.utils import tree_flatten

from .._mlx_lm import KVCache
from ..config.model_config import ModelConfig
from ..errors import RequestError
from ..model import Model, cpu
from .options import GenerationOptions

MAX_TILES = 16
"""More at once are not faster: one already fills a GPU's matrix units for most of its time."""

_OPERATIONS_IN_FLIGHT = 10
"""Results that exist at once, fitted to measured peaks: MLX allocates ahead of what it computes."""

MIN_PREFILL = 64
"""Fewer tokens at once would not save much beside the weights, and each step reads all of them."""

_LAYERS_IN_FLIGHT = 2
"""Decoder layers whose results exist at once while a prompt is read, for the same reason."""

_CPU_SCORES = 2
"""Arrays of attention scores that exist at once where attention is not fused."""

SCORES_BYTES = 6 * cpu.BLOCK_BYTES
"""Attention scores on a CPU, and what becomes of them on their way to weights: a block at a time,
however many tiles. A GPU's fused attention has none."""


def tile_bytes(config: ModelConfig, value_bytes: int) -> int:
    """Return the most memory that one more tile of a group takes, in bytes.

    Of every patch: the pixels in float32; the features that are kept and joined; the residual
    stream before and after; and results of operations in flight, none of which is wider than the
    MLP or the fused projection. Attention scores are not among them; see `SCORES_BYTES`.

    Args:
        config: of the model.
        value_bytes: of an activation.
    """
    tower = config.tower
    attention = tower.block.attention
    widest = max(
        tower.block.mlp.intermediate_size, attention.query_size + 2 * attention.key_value_size
    )
    values = _OPERATIONS_IN_FLIGHT * widest + 2 * tower.feature_size + 2 * tower.hidden_size
    return tower.num_patches * (values * value_bytes + tower.patch_values * 4)


def kv_bytes(config: ModelConfig, tokens: int, value_bytes: int) -> int:
    """Return the bytes of the keys and values of so many tokens."""
    decoder = config.decoder
    width = 2 * decoder.num_hidden_layers * decoder.block.attention.key_value_size
    return tokens * width * value_bytes


def prefill_bytes(config: ModelConfig, step: int, tokens: int, value_bytes: int) -> int:
    """Return the memory that reading `step` tokens of a prompt takes beside keys and values.

    Those are results of decoder layers. On a CPU, where attention is not fused, there are scores
    of every token with all tokens so far, too.

    Args:
        config: of the model.
        step: tokens that are read at once.
        tokens: of the whole prompt.
        value_bytes: of an activation.
    """
    decoder = config.decoder
    attention, mlp = decoder.block.attention, decoder.block.mlp
    projected = attention.query_size + 2 * attention.key_value_size
    # Projected, normalized, rotated; attended; both halves of the MLP and their product; norms,
    # outputs and sums.
    values = 3 * projected + attention.query_size + 6 * decoder.hidden_size
    values += (2 + mlp.gated) * mlp.intermediate_size
    values *= _LAYERS_IN_FLIGHT
    if mx.default_device().type == mx.cpu:
        values += _CPU_SCORES * attention.num_attention_heads * tokens
    return step * values * value_bytes


@dataclass(frozen=True)
class Steps:
    """How much of a request is computed at once."""

    tile_group_size: int
    prefill_step_size: int
    cache_bytes: int | None
    """Most that caches may hold meanwhile; None for no limit."""


def choose_steps(
    model: Model,
    options: GenerationOptions,
    prompt_tokens: int,
    *,
    has_tiles: bool,
    answers: int = 1,
    cached_bytes: int = 0,
) -> Steps:
    """Return how much to compute at once.

    Without `max_memory` it is what the options say. With it, first the tiles and then the tokens
    that fit beside weights, keys and values, embeddings, and what caches hold. Of the latter, as
    much is to be let go of as is needed for one tile and `MIN_PREFILL` tokens.

    Args:
        model: whose weights are in memory.
        options: of the request.
        prompt_tokens: of the whole prompt, what is known of it already included.
        has_tiles: whether there are images to be encoded.
        answers: how many like this one are in memory together.
        cached_bytes: what caches hold.

    Raises:
        RequestError: not even the least fits.
    """
    if options.max_memory is None:
        return Steps(options.tile_group_size, options.prefill_step_size, None)
    config = model.config
    size: int = model.dtype.size
    parameters: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    weights = sum(array.nbytes for array in parameters.values())
    tokens = min(prompt_tokens + options.max_tokens, config.decoder.context_size)
    if options.max_kv_size is not None:
        tokens = min(tokens, options.max_kv_size)
    cache = answers * kv_bytes(config, -(-tokens // KVCache.step) * KVCache.step, size)
    # Looked up; features, and gathered ones; the sum.
    embeddings = 4 * prompt_tokens * config.decoder.hidden_size * size

    def prefill(step: int) -> int:
        return prefill_bytes(config, step, prompt_tokens, size)

    one = tile_bytes(config, size)
    longest = min(options.prefill_step_size, prompt_tokens)
    least_tokens = min(longest, MIN_PREFILL)
    least = max(prefill(least_tokens), SCORES_BYTES + one if has_tiles else 0)
    room = options.max_memory - weights - cache - embeddings
    if room < least:
        least_name = "one tile" if least > prefill(least_tokens) else f"{least_tokens} tokens"
        raise RequestError(
            f"max_memory is {options.max_memory / 1e9:.2f} GB, but weights ({weights / 1e9:.2f}),"
            f" keys and values{f' of {answers} answers' if answers > 1 else ''}"
            f" ({cache / 1e9:.2f}), embeddings ({embeddings / 1e9:.2f}) and {least_name} at a time"
            f" ({least / 1e9:.2f}) need {(options.max_memory - room + least) / 1e9:.2f}: allow"
            " more, or take a model of fewer bits"
        )
    cached = min(cached_bytes, room - least)
    room -= cached
    group = min((room - SCORES_BYTES) // one, MAX_TILES) if has_tiles else options.tile_group_size
    step = longest
    while step > least_tokens and prefill(step) > room:
        step = max(step // 2, least_tokens)
    return Steps(int(group), step, cached)
