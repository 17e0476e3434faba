"""Prompt lookup: tokens per pass of answers that copy, and equal tokens in random cases.

    python -m benchmarks.prompt_lookup --model demo
    python -m benchmarks.prompt_lookup --model DIR --cases 200

The answers of the first table are given (a table, JSON, lines that recur, prose), tokenized by the
checkpoint and said by a stand-in, so that what is counted depends on no weights. Speeds follow from
what a pass over four tokens costs, in passes over one; they are computed, not measured. Then the
checkpoint itself answers random prompts with repetitions in them, with and without lookup: tokens
must be equal, and real times are shown.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any
from unittest import mock

import mlx.core as mx
import numpy as np

from jvlm_mlx import Model
from jvlm_mlx.generation import device
from jvlm_mlx.generation.engine import Engine
from jvlm_mlx.generation.prompt_lookup import LONG, PromptLookup
from jvlm_mlx.generation.row import Row
from jvlm_mlx.model.decoder import Decoder

from .harness.machine import describe_machine
from .harness.models import add_checkpoint_arguments, loaded_checkpoint
from .harness.report import json_line, markdown_table
from .harness.scripted import ScriptedModel, decode

COSTS = (1.1, 1.6, 3.3)
"""What a pass over four tokens costs: at four bits on new and on old kernels, 1.1 and 3.3."""

_PEOPLE = (("Anna", 31, "Bern"), ("Bert", 42, "Rome"), ("Carla", 27, "Oslo"), ("Dan", 65, "Riga"),
           ("Eva", 19, "Bonn"), ("Fritz", 54, "Wien"), ("Gina", 38, "Nice"), ("Hugo", 71, "Cork"),
           ("Ida", 23, "Lyon"), ("Jan", 46, "Brno"))  # fmt: skip
_INVOICES = "| Date | Item | Pieces | Paid |\n|---|---|---|---|\n" + "".join(
    f"| 2024-03-{day:02} | Paper A4 | {day * 7 % 10} | yes |\n" for day in range(1, 15)
)
_TABLE = "| Name | Age | City |\n|---|---|---|\n" + "".join(
    f"| {name} | {age} | {city} |\n" for name, age, city in _PEOPLE
)
_JSON = (
    "["
    + ",\n ".join(
        f'{{"name": "{name}", "age": {age}, "city": "{city}"}}' for name, age, city in _PEOPLE
    )
    + "]"
)
TEXTS = {
    "table of invoices": ("Transcribe the table.", _INVOICES),
    "table of names": ("Transcribe the table.", _TABLE),
    "JSON": ("List all people as JSON.", _JSON),
    "JSON of a table in the prompt": (f"{_TABLE}\nAs JSON, please.", _JSON),
    "lines that recur": (
        "Transcribe the form.",
        "".join(f"{name}: ___________\nSigned: ______ Date: ______\n" for name, *_ in _PEOPLE),
    ),
    "prose": (
        "Describe the image.",
        "A narrow street climbs between old houses with wooden shutters. Near the corner a man in a"
        " gray coat waits beside his bicycle, and behind him two children look into the window of a"
        " bakery. It has rained, for the stones shine, and the sky above the roofs is still dark.",
    ),
}  # fmt: skip


def given_answers(encode: Any, vocab_size: int) -> list[dict[str, Any]]:
    """Return, for each text, tokens per pass and the gain in speed at each cost."""
    found = []
    for name, (question, answer) in TEXTS.items():
        prompt, tokens = encode(question), encode(answer)
        result: dict[str, Any] = {"text": name, "tokens": len(tokens)}
        for cost in COSTS:
            model = ScriptedModel([*prompt, *tokens, 0], vocab_size, row_seconds=(cost - 1) / LONG)
            lookup = PromptLookup(prompt, vocab_size, model.clock)
            if decode(model, prompt, len(tokens), lookup) != tokens:
                raise RuntimeError(f"{name}: other tokens than the text's")
            if cost == COSTS[0]:
                # The first token comes with the prompt.
                result["tokens_per_pass"] = (len(tokens) - 1) / len(model.passes)
            result[f"gain_{cost}"] = (len(tokens) - 1) / model.seconds
        found.append(result)
    return found


def random_prompts(count: int, vocab_size: int, length: int) -> list[list[int]]:
    """Return prompts in which a passage recurs, with some tokens after it."""
    random = np.random.default_rng(11)
    prompts = []
    for _ in range(count):
        passage = random.integers(0, vocab_size, random.integers(3, 24)).tolist()
        times = max(1, length // len(passage))
        prompts.append([*passage * times, *random.integers(0, vocab_size, 4).tolist()])
    return prompts


def answer(
    model: Model, prompt: Sequence[int], count: int, *, with_lookup: bool
) -> tuple[list[int], int, float]:
    """Return tokens, passes and seconds of an answer. On the device's worker."""
    passes = 0
    run_decoder = Decoder.__call__

    def counted(*arguments: Any) -> mx.array:
        nonlocal passes
        passes += 1
        return run_decoder(*arguments)

    cache = model.make_cache()
    hidden = model.decoder(model.decoder.embed(np.array([prompt])), cache)
    logits = model.head(hidden[:, -1])
    mx.eval(logits)
    lookup = PromptLookup(prompt, model.config.decoder.vocab_size) if with_lookup else None
    engine, tokens = Engine(model), []
    with mock.patch.object(Decoder, "__call__", counted):
        start = time.perf_counter()
        engine.add([Row(count, lookup=lookup)], cache, logits)
        while engine.rows:
            tokens += [one.token for one in engine.step()]
    return tokens, passes, time.perf_counter() - start


def main() -> int:
    """Run, print, and return 1 if lookup changes an answer."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add_checkpoint_arguments(parser)
    parser.add_argument("--cases", type=int, default=200, help="random prompts")
    parser.add_argument("--max-tokens", type=int, default=64)
    arguments = parser.parse_args()
    equal, totals = 0, np.zeros((2, 3))
    with loaded_checkpoint(arguments.model, arguments.layers, arguments.dtype) as loaded:
        model, processor = loaded
        vocab_size = model.config.decoder.vocab_size
        given = given_answers(processor.tokenizer.encode, vocab_size)
        for prompt in random_prompts(arguments.cases, vocab_size, 48):
            both = [
                device.run(
                    partial(answer, model, prompt, arguments.max_tokens, with_lookup=with_lookup)
                )
                for with_lookup in (False, True)
            ]
            equal += both[0][0] == both[1][0]
            totals += [(len(tokens) - 1, passes, seconds) for tokens, passes, seconds in both]
    print(
        markdown_table(
            ("given answer", "tokens", "tokens per pass", *(f"at {cost} x" for cost in COSTS)),
            [
                (one["text"], one["tokens"], f"{one['tokens_per_pass']:.2f}",
                 *(f"{one[f'gain_{cost}']:.2f} x" for cost in COSTS))
                for one in given
            ],
        )
    )  # fmt: skip
    (plain_tokens, plain_passes, plain_seconds), (tokens, passes, seconds) = totals.tolist()
    print(
        f"\n{equal} of {arguments.cases} random answers have equal tokens; tokens per pass"
        f" {tokens / passes:.2f} (plain {plain_tokens / plain_passes:.2f}), speed"
        f" {plain_seconds / seconds:.2f} x"
    )
    content = {
        "machine": describe_machine(),
        "arguments": vars(arguments),
        "given": given,
        "equal": equal,
        "random_tokens_per_pass": tokens / passes,
        "random_speed": plain_seconds / seconds,
    }
    print(json_line("prompt_lookup", content))
    return 0 if equal == arguments.cases else 1


if __name__ == "__main__":
    sys.exit(main())
