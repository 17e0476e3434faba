"""Answers that are JSON by construction: tokens that would break it are never sampled.

llguidance (the extra `structured`) keeps track of what a JSON Schema allows next, as one bit for
each token. It never allows a special token inside the text, so no image token either.
"""

import json
import threading
import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np

from ..config.json_file import quoted
from ..errors import RequestError
from ..model import Model
from ..processing.processor import Processor
from ..processing.tokenizer import Tokenizer
from .options import GenerationOptions
from .schema_limits import check_schema

MAX_SCHEMA_CHARACTERS = 100_000
_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As Python writes JSON. Where any white space may stand, a model may repeat it for ever."""


class JsonGrammar:
    """The grammar of one answer; see `engine.Grammar`."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def mask(self, logits: mx.array) -> mx.array:
        """Return logits (1, vocabulary) with those of forbidden tokens at minus infinity.

        Raises:
            RequestError: the schema cannot be followed any further.
        """
        bits = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            problem = self._matcher.get_error().strip().splitlines()[0]
            raise RequestError(f"the schema cannot be followed: {problem[:200]}")
        # (words,) int32 -> (words, 4) bytes -> (words * 32,) bits, the lowest first
        allowed = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")
        # (vocabulary,) -> (1, vocabulary)
        keep = mx.array(allowed[: self._vocab_size].astype(np.bool_))[None]
        return mx.where(keep, logits, mx.array(-mx.inf, logits.dtype))

    def accept(self, token: int) -> None:
        """Take note of the token that was chosen; what is wrong with it shows at the next one."""
        self._matcher.consume_token(token)


class JsonGrammars:
    """Makes grammars for the answers of one model. Making the first takes about a second.

    Args:
        tokenizer: of the checkpoint.
        vocab_size: columns of the logits.

    Raises:
        RequestError: llguidance is not installed.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        try:
            import llguidance
        except ModuleNotFoundError:
            raise RequestError(
                "answers by a JSON schema need llguidance: pip install 'jvlm-mlx[structured]'"
            ) from None
        self._library = llguidance
        self._vocab_size = vocab_size
        stops = [token for token in sorted(tokenizer.stop_token_ids) if token < vocab_size]
        # It knows more tokens than there are logits: those of images are never allowed.
        self._tokenizer = llguidance.LLTokenizer(tokenizer.to_json(), eos_token=stops)

    def make(self, schema: Mapping[str, Any]) -> JsonGrammar:
        """Return the grammar of one answer that must satisfy a JSON Schema.

        Raises:
            RequestError: the schema is malformed, or has something that cannot be followed.
        """
        check_schema(schema)
        matcher_class = self._library.LLMatcher
        try:
            text = json.dumps({**schema, "x-guidance": _STYLE})
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"the schema is no JSON: {error}") from None
        if len(text) > MAX_SCHEMA_CHARACTERS:
            raise RequestError(
                f"the schema has {len(text)} characters; at most {MAX_SCHEMA_CHARACTERS}"
            )
        # Answers begin with a space, which belongs to the chat template.
        grammar = matcher_class.grammar_from_lark(f'start: " "? value\nvalue: %json {text}\n')
        problem = matcher_class.validate_grammar(grammar, self._tokenizer)
        if problem:
            first = problem.strip().splitlines()[0]
            raise RequestError(f"the schema cannot be followed: {quoted(first)}")
        return JsonGrammar(matcher_class(self._tokenizer, grammar, log_level=0), self._vocab_size)


_known: "weakref.WeakKeyDictionary[Tokenizer, JsonGrammars]" = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def with_grammar(
    options: GenerationOptions, model: Model, processor: Processor
) -> GenerationOptions:
    """Return the options of one answer, whose schema has become a grammar for it alone.

    Raises:
        RequestError: the schema cannot be followed, llguidance is not installed, or no token of
            the checkpoint may end the answer.
    """
    if options.schema is None:
        return options
    stops = processor.tokenizer.stop_token_ids
    if options.stop_token_ids is not None and not options.stop_token_ids & stops:
        raise RequestError(
            "stop_token_ids has none of the checkpoint's own tokens that end an answer, so one by"
            " a schema would not end"
        )
    with _lock:
        grammars = _known.get(processor.tokenizer)
        if grammars is None:
            grammars = JsonGrammars(processor.tokenizer, model.config.decoder.vocab_size)
            _known[processor.tokenizer] = grammars
    return replace(options, schema=None, grammar=grammars.make(options.schema))
