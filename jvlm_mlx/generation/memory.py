"""Device memory: how much of a request is computed at once, and what the system keeps wired."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import mlx.core as mx

from .. import _mlx_lm
from ..config.model_config import ModelConfig
from ..errors import RequestError
from ..model import Model, cpu
from . import device
from .options import GenerationOptions

logger = logging.getLogger(__name__)

DEFAULT_FRACTION = 0.9
"""Of the memory that the system recommends for a GPU: the limit of requests without their own."""

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


def weight_bytes(model: Model) -> int:
    """Return the bytes of a model's weights."""
    return sum(array.nbytes for array in model.arrays())


def kv_bytes(config: ModelConfig, tokens: int, value_bytes: int) -> int:
    """Return the bytes of the KV cache of so many tokens."""
    decoder = config.decoder
    width = 2 * decoder.num_hidden_layers * decoder.block.attention.key_value_size
    return tokens * width * value_bytes


def prefill_bytes(config: ModelConfig, step: int, tokens: int, value_bytes: int) -> int:
    """Return the memory that reading `step` tokens of a prompt takes beside the KV cache.

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
    # Projected, normalized, weighted, rotated; attended; both halves of the MLP and their
    # product; norms, outputs and sums.
    values = 4 * projected + attention.query_size + 6 * decoder.hidden_size
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

    First the tiles and then the tokens that fit into `max_memory` beside weights, keys and
    values, embeddings, and what caches hold. Of the latter, as much is to be released as is
    needed for one tile and `MIN_PREFILL` tokens. Without `max_memory`, a GPU's recommended
    memory is the limit, but a request that needs more is only warned of; a CPU has none.

    Args:
        model: whose weights are in memory.
        options: of the request.
        prompt_tokens: of the whole prompt, cached ones included.
        has_tiles: whether there are images to be encoded.
        answers: how many like this one are in memory together.
        cached_bytes: what caches hold.

    Raises:
        RequestError: not even the least fits into `max_memory`.
    """
    limit = options.max_memory or default_limit()
    if limit is None:
        return Steps(options.tile_group_size, options.prefill_step_size, None)
    config = model.config
    size: int = model.dtype.size
    weights = weight_bytes(model)
    tokens = min(prompt_tokens + options.max_tokens, config.decoder.context_size)
    if options.max_kv_size is not None:
        tokens = min(tokens, options.max_kv_size)
    cache = answers * kv_bytes(
        config, -(-tokens // _mlx_lm.KVCache.step) * _mlx_lm.KVCache.step, size
    )
    # Looked up; features, and gathered ones; the sum.
    embeddings = 4 * prompt_tokens * config.decoder.hidden_size * size

    def prefill(step: int) -> int:
        return prefill_bytes(config, step, prompt_tokens, size)

    one = tile_bytes(config, size)
    longest = min(options.prefill_step_size, prompt_tokens)
    least_tokens = min(longest, MIN_PREFILL)
    least = max(prefill(least_tokens), SCORES_BYTES + one if has_tiles else 0)
    room = limit - weights - cache - embeddings
    if room < least:
        least_name = "one tile" if least > prefill(least_tokens) else f"{least_tokens} tokens"
        given = options.max_memory is not None
        owner = "max_memory is" if given else "this GPU should use at most"
        message = (
            f"{owner} {limit / 1e9:.2f} GB, but weights ({weights / 1e9:.2f}),"
            f" the KV cache{f' of {answers} answers' if answers > 1 else ''}"
            f" ({cache / 1e9:.2f}), embeddings ({embeddings / 1e9:.2f}) and {least_name} at a time"
            f" ({least / 1e9:.2f}) need {(limit - room + least) / 1e9:.2f}: allow"
            " more, or take a model of fewer bits"
        )
        if options.max_memory is not None:
            raise RequestError(message)
        logger.warning("this may be slow or fail: %s", message)
        return Steps(1, least_tokens, 0)
    cached = min(cached_bytes, room - least)
    room -= cached
    group = options.tile_group_size
    if has_tiles:
        most = MAX_TILES if options.max_memory is not None else group
        group = min((room - SCORES_BYTES) // one, most)
    step = longest
    while step > least_tokens and prefill(step) > room:
        step = max(step // 2, least_tokens)
    return Steps(int(group), step, cached)


def default_limit() -> int | None:
    """Return the memory that requests without `max_memory` may take; None for no limit."""
    recommended = _recommended()
    return None if recommended is None else int(DEFAULT_FRACTION * recommended)


def _recommended() -> int | None:
    """Return what the system recommends a GPU's working set to be, in bytes; None on a CPU."""
    recommended = mx.device_info().get("max_recommended_working_set_size")
    return int(recommended) if recommended else None


WiredBytes = int | Literal["none"] | None
"""The option of that name: bytes, `none` for leaving the limit alone, None for the usual."""


class WiredLimit:
    """Keeps memory wired while at least one answer, chat or batch is under way.

    The limit belongs to the process: the first holder raises it, the last one puts back what was
    there. Used on the worker only, whose stream runs every step, so no step is under way while
    the limit changes.
    """

    def __init__(self) -> None:
        self._held: list[int] = []
        self._previous = 0

    def hold(self, limit: WiredBytes) -> None:
        """Raise the limit: to what the system recommends, to fewer bytes, or not at all."""
        size = _wired_bytes(limit)
        self._held.append(size)
        if size and max(self._held[:-1], default=0) < size:
            mx.synchronize()
            before = mx.set_wired_limit(size)
            if not any(self._held[:-1]):
                self._previous = before

    def release(self, limit: WiredBytes) -> None:
        """Take back one `hold` with the same argument."""
        size = _wired_bytes(limit)
        held_before = max(self._held, default=0)
        self._held.remove(size)
        held = max(self._held, default=0)
        if held != held_before:
            mx.synchronize()
            mx.set_wired_limit(held or self._previous)


def _wired_bytes(limit: WiredBytes) -> int:
    recommended = _recommended()
    if recommended is None or limit == "none":
        return 0
    return min(limit or recommended, recommended)  # MLX refuses more


wired_limit = WiredLimit()


@contextmanager
def keep_wired(limit: WiredBytes = None) -> Iterator[None]:
    """Hold the wired limit for a chat, a batch, or whatever else is inside."""
    device.run(partial(wired_limit.hold, limit))
    try:
        yield
    finally:
        device.post(partial(wired_limit.release, limit))
