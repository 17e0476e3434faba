"""Loops are noticed; tables, lists, JSON and digits are not taken for loops."""

import itertools

import mlx.core as mx
import pytest

from jvlm_mlx import batch_generate, generate
from jvlm_mlx.generation.repetition import RepetitionGuard
from jvlm_mlx.serving.chat_response import finish_reason


def stopped_after(text, tokens=None):
    """Return after how many tokens (characters, unless said otherwise) the guard stops, or None."""
    tokens = [ord(one) for one in text] if tokens is None else tokens
    guard = RepetitionGuard(lambda ids: "".join(map(chr, ids)))
    return next((count for count, token in enumerate(tokens, 1) if guard.add(token)), None)


@pytest.mark.parametrize(
    "text",
    [
        "The image shows a man in a red shirt. ",
        "A dog and a cat are playing in the garden of the old house.\n\n",
        "这张图片显示了一个穿着红色衬衫的男人站在房子前面。",
        "the same word again and again ",
    ],
)
def test_sentences_in_a_loop_end(text):
    start = "An answer that begins well: "
    found = stopped_after(start + text * 60)
    assert found is not None
    assert found - len(start) <= max(160, 9 * len(text))


@pytest.mark.parametrize(
    "text",
    [
        "| item | price | stock |\n" + "| - | - | - |\n" * 45,
        "".join(f"| lamp {n} | 59.70 | 3 |\n" for n in range(60)),
        "| N/A | N/A | none | none |\n" * 30,
        '{"a": [' + "0, " * 250 + "0]}",
        "[" + '{"name": "", "value": null},\n' * 30 + "]",
        "0" * 500,
        "3.14159 2.71828 " * 20,
        "-" * 400,
        "- Not specified\n" * 40,
        "1. yes\n2. yes\n3. no\n" * 12,
        "Total: 0.00 EUR\n" * 30,
        "<td></td>" * 60,
        "".join(f"{n}, " for n in range(400)),
        "It was a dark and stormy night. " * 4,
        "la la la la la la la la la la la la la la la la la la",
    ],
)
def test_documents_that_repeat_themselves_go_on(text):
    assert stopped_after(text) is None


@pytest.mark.parametrize("text", ["0", "| - | - |\n", "la "])
def test_nothing_goes_on_for_ever(text):
    assert stopped_after(None, map(ord, itertools.islice(itertools.cycle(text), 20_000))) >= 1024


def test_an_answer_in_a_loop_has_its_own_finish_reason(tiny):
    sentence = "The image shows a man in a red shirt. "
    spelled = tiny[1].tokenizer.encode(sentence)

    def answer(**options):
        tokens = itertools.cycle(spelled)
        sampler = lambda _: mx.array([next(tokens)])  # noqa: E731
        return generate(*tiny, "Hi", max_tokens=400, stop_token_ids=(), sampler=sampler, **options)

    looping, free = answer(), answer(repetition_guard=False)
    assert (looping.finish_reason, free.finish_reason) == ("repetition", "length")
    assert looping.generation_tokens < 400
    assert looping.token_ids == free.token_ids[: looping.generation_tokens]
    assert free.text.startswith(looping.text)


def test_a_loop_in_a_batch_ends_alone(tiny):
    sentence = tiny[1].tokenizer.encode("The image shows a man in a red shirt. ")
    tokens = itertools.cycle(sentence)
    looping = {"prompt": "Hi", "sampler": lambda _: mx.array([next(tokens)])}
    requests = [looping, {"prompt": "Hi", "max_tokens": 5}]
    found = batch_generate(*tiny, requests, max_tokens=400, stop_token_ids=())
    reasons = {one.index: one.result.finish_reason for one in found}
    assert reasons == {0: "repetition", 1: "length"}


def test_the_server_tells_of_a_loop_as_of_an_answer_that_is_too_long():
    reasons = ("stop", "length", "repetition", None)
    assert [finish_reason(one) for one in reasons] == ["stop", "length", "length", None]
