"""Log-likelihoods of continuations: what benchmarks of multiple choice compare.

Contexts are read in an order in which neighbors share their prefixes, and only what differs is
read again. All continuations of a context then go through the decoder together.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from .. import _mlx_lm
from ..checkpoint.weights import as_float
from ..errors import PromptError, RequestError
from ..generation import device
from ..generation.caches import GenerationCaches
from ..generation.image_encoding import encode_opened_images
from ..generation.memory import keep_wired
from ..generation.options import GenerationOptions
from ..generation.prefill import feature_positions, merged_embeddings
from ..generation.prompt import prepare_prompt
from ..model import Model
from ..processing.chat_template import RenderedPrompt
from ..processing.image_processor import PromptImage
from ..processing.inputs import PreparedPrompt
from ..processing.processor import Processor, as_list
from ..processing.tokenizer import IMAGE_PLACEHOLDER
from ..progress import Progress, ProgressEvent, no_progress

_PREFILL_STEP = 512
_MAX_LOGITS = 256
"""Tokens whose logits are computed at once: 160 MB with a vocabulary of 152,000."""
_TILE_GROUP_SIZE = 4

Context = str | Sequence[Mapping[str, Any]]
Key = tuple[Any, ...]


class Likelihood(NamedTuple):
    """How probable a continuation is."""

    logprob: float
    """Sum over its tokens, in nats."""
    tokens: int
    is_greedy: bool
    """Whether each of its tokens is the most probable one."""


def loglikelihood(
    model: Model,
    processor: Processor,
    contexts: Sequence[Context],
    continuations: Sequence[str],
    images: Sequence[Any] | None = None,
    *,
    max_crops: int | None = None,
    progress: Progress = no_progress,
) -> list[float]:
    """Return log P(continuation | context) in nats, for each pair of context and continuation.

    Equal to a forward pass of every whole sequence, up to rounding.

    Args:
        model: from `load`.
        processor: from `load`.
        contexts: a plain text is read as it is, BOS in front; a conversation's messages, or what
            `processor.apply_chat_template` returned, are read like a prompt of `generate`.
        continuations: one for each context; spaces between the two belong to either.
        images: one, a list, or None for each context; None if there are none at all. Images of a
            text without placeholders go in front.
        max_crops: most tiles of an image.
        progress: called after each context.

    Raises:
        PromptError: a context is malformed, or too long together with its continuation.
        ImageError: an image cannot be used.
        RequestError: the lists differ in length, or a continuation is empty.
    """
    found = score_continuations(
        model, processor, contexts, continuations, images, max_crops=max_crops, progress=progress
    )
    return [likelihood.logprob for likelihood in found]


def score_continuations(
    model: Model,
    processor: Processor,
    contexts: Sequence[Context],
    continuations: Sequence[str],
    images: Sequence[Any] | None = None,
    *,
    max_crops: int | None = None,
    progress: Progress = no_progress,
) -> list[Likelihood]:
    """Return more about each continuation; everything else is as for `loglikelihood`."""
    sources = [None] * len(contexts) if images is None else list(images)
    if not len(contexts) == len(continuations) == len(sources):
        raise RequestError(
            f"there are {len(contexts)} contexts, {len(continuations)} continuations and"
            f" {len(sources)} images; give one of each for every pair"
        )
    options = GenerationOptions(max_crops=max_crops)
    pairs = [
        _pair(processor, number, context, continuation, as_list(source), options)
        for number, (context, continuation, source) in enumerate(
            zip(contexts, continuations, sources, strict=True)
        )
    ]
    context_size = model.config.decoder.context_size
    for pair in pairs:
        if len(pair.key) + len(pair.continuation) > context_size:
            raise PromptError(
                f"pair {pair.number} has {len(pair.key) + len(pair.continuation)} tokens; the"
                f" model's context is {context_size}"
            )
    found: dict[int, Likelihood] = {}
    reader = _Reader(model)
    pairs.sort(key=lambda pair: tuple(map(str, pair.key)))

    def score(together: Sequence[_Pair]) -> list[Likelihood]:
        last = reader.read(together[0])
        return _score_group(model, reader.cache, last, [pair.continuation for pair in together])

    device.take_over(model)
    with keep_wired():
        for _, group in groupby(pairs, key=lambda pair: pair.key):
            together = list(group)
            scored = device.run(partial(score, together))
            found |= zip((pair.number for pair in together), scored, strict=True)
            progress(ProgressEvent("likelihoods", len(found), len(pairs), "continuation"))
    return [found[number] for number in range(len(pairs))]


def raw_prompt(text: str) -> RenderedPrompt:
    """Return a text as a prompt that is read as it is: nothing in it but images is special."""
    literals = set(range(len(text)))
    start = text.find(IMAGE_PLACEHOLDER)
    while start >= 0:
        literals -= set(range(start, start + len(IMAGE_PLACEHOLDER)))
        start = text.find(IMAGE_PLACEHOLDER, start + len(IMAGE_PLACEHOLDER))
    return RenderedPrompt(text, literals)


@dataclass(frozen=True, eq=False)
class _Pair:
    number: int
    prepared: PreparedPrompt[PromptImage]
    key: Key
    """An element for each token; those of images differ if the images do."""
    continuation: tuple[int, ...]


def _pair(
    processor: Processor,
    number: int,
    context: Context,
    continuation: str,
    images: list[Any],
    options: GenerationOptions,
) -> _Pair:
    if isinstance(context, RenderedPrompt):
        rendered = context
    elif isinstance(context, str):
        # Spaces at the end of a context are part of the following token.
        kept = context.rstrip(" ")
        continuation = context[len(kept) :] + continuation
        rendered = raw_prompt(kept)
    else:
        rendered = processor.apply_chat_template(context)
    whole = RenderedPrompt(
        rendered + continuation,
        rendered.literals | set(range(len(rendered), len(rendered) + len(continuation))),
    )
    length = len(processor.encode(rendered, len(images)))
    tokens = tuple(processor.encode(whole, len(images))[length:].tolist())
    if not tokens:
        raise RequestError(f"pair {number}: the continuation is empty")
    prepared = prepare_prompt(processor, rendered, images or None, None, options)
    key: list[Any] = prepared.token_ids.tolist()
    for start, image in zip(prepared.starts, prepared.images, strict=True):
        for offset in range(image.layout.num_tokens):
            key[start + offset] = f"{image.digest} {offset}"
    return _Pair(number, prepared, tuple(key), tokens)


class _Reader:
    """Reads one context after the other and keeps what the next one shares with the last."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._key: Key = ()
        self._features = GenerationCaches()
        self.cache: list[Any] = model.make_cache()
        """KV cache of all tokens of the context but the last."""

    def read(self, pair: _Pair) -> mx.array:
        """Read a context up to its last token; return that one's embedding, (1, hidden_size)."""
        shared = _common_prefix(self._key, pair.key[:-1])
        for layer in self.cache:
            layer.trim(layer.offset - shared)
        embeddings = self._embed(pair.prepared)
        for begin in range(shared, len(embeddings) - 1, _PREFILL_STEP):
            end = min(begin + _PREFILL_STEP, len(embeddings) - 1)
            self._model.decoder(embeddings[None, begin:end], self.cache)
            mx.eval([layer.state for layer in self.cache])
        self._key = pair.key[:-1]
        return embeddings[-1:]

    def _embed(self, prepared: PreparedPrompt[PromptImage]) -> mx.array:
        """Return the embeddings (L, hidden_size) of a context, images merged in."""
        model, images = self._model, list(prepared.images)
        features = encode_opened_images(
            model, images, self._features, _TILE_GROUP_SIZE, no_progress, lambda: None
        )
        positions = feature_positions(zip(prepared.starts, images, strict=True))
        embeddings = merged_embeddings(model, prepared.token_ids, features, positions)
        mx.eval(embeddings)
        return embeddings[0]


def _common_prefix(one: Key, other: Key) -> int:
    for place, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return place
    return min(len(one), len(other))


def _score_group(
    model: Model,
    cache: Sequence[Any],
    last: mx.array,
    continuations: Sequence[tuple[int, ...]],
) -> list[Likelihood]:
    """Score the continuations of one context together.

    Args:
        model: the model.
        cache: of the context without its last token; it is not changed.
        last: (1, hidden_size) embedding of that token.
        continuations: their tokens.
    """
    # The last token of a continuation is predicted, never read. What begins another one needs no
    # row of its own: options of one token all share one.
    inputs = sorted({tokens[:-1] for tokens in continuations}, key=len, reverse=True)
    rows: list[tuple[int, ...]] = []
    row_of: dict[tuple[int, ...], int] = {}
    for read in inputs:
        found = next((n for n, row in enumerate(rows) if row[: len(read)] == read), len(rows))
        row_of[read] = found
        if found == len(rows):
            rows.append(read)
    wanted: dict[int, list[tuple[int, ...]]] = {}
    for tokens in continuations:
        wanted.setdefault(row_of[tokens[:-1]], []).append(tokens)
    scored: dict[tuple[int, ...], Likelihood] = {}
    for chunk in _chunks([len(row) + 1 for row in rows]):
        logits = _logits(model, cache, last, [rows[n] for n in chunk])
        for place, n in enumerate(chunk):
            for tokens in wanted[n]:
                scored[tokens] = _likelihood(logits[place, : len(tokens)], tokens)
    return [scored[tokens] for tokens in continuations]


def _chunks(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield places of rows, longest first, so many that padded they are at most `_MAX_LOGITS`."""
    chunk: list[int] = []
    for place in range(len(lengths)):
        if chunk and lengths[chunk[0]] * (len(chunk) + 1) > _MAX_LOGITS:
            yield chunk
            chunk = []
        chunk.append(place)
    if chunk:
        yield chunk


def _logits(
    model: Model, cache: Sequence[Any], last: mx.array, rows: Sequence[tuple[int, ...]]
) -> mx.array:
    """Return the logits (R, N, vocabulary) after the last token of the context and after `rows`.

    Rows are padded on the right, where causal attention lets nothing look.
    """
    width = max(len(row) for row in rows)
    ids = np.zeros((len(rows), width), np.int32)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
    # (1, D) -> (R, 1, D), and (R, N - 1, D) behind it
    embeddings = mx.broadcast_to(last[None], (len(rows), 1, last.shape[-1]))
    if width:
        embeddings = mx.concatenate([embeddings, model.decoder.embed(mx.array(ids))], axis=1)
    logits = model.head(model.decoder(embeddings, [_repeated(c, len(rows)) for c in cache]))
    mx.eval(logits)
    return logits


def _repeated(cache: Any, rows: int) -> Any:
    """Return a KV cache in which every row has the tokens of a cache with one row."""
    repeated = _mlx_lm.KVCache()
    if cache.offset:
        # What lies behind the offset is room for more tokens.
        repeated.keys, repeated.values = (
            mx.broadcast_to(array, (rows, *array.shape[1:]))[..., : cache.offset, :]
            for array in (cache.keys, cache.values)
        )
        repeated.offset = cache.offset
    return repeated


def _likelihood(logits: mx.array, tokens: Sequence[int]) -> Likelihood:
    """Score the tokens (N,) that logits (N, vocabulary) predict."""
    logits = logits.astype(mx.float32)
    chosen = mx.array(list(tokens))[:, None]
    logprobs = mx.take_along_axis(logits, chosen, -1)[:, 0] - mx.logsumexp(logits, -1)
    is_greedy = mx.all(mx.argmax(logits, -1) == chosen[:, 0])
    return Likelihood(as_float(logprobs.sum()), len(tokens), bool(is_greedy.item()))
