"""Prompt lookup: the tokens of plain decoding in fewer passes, or none of it."""

from functools import partial

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import KVCache

import jvlm_mlx
from benchmarks.harness.scripted import ScriptedModel, decode
from jvlm_mlx import ChatSession, GenerationCaches, batch_generate, generate, stream_generate
from jvlm_mlx.generation import answer, device
from jvlm_mlx.generation.engine import Engine
from jvlm_mlx.generation.prompt_lookup import MAX_MISSES, PromptLookup
from jvlm_mlx.generation.row import Row
from jvlm_mlx.model.decoder import Decoder

OPTIONS = {"stop_token_ids": (), "repetition_guard": False}
VOCABULARY = 100


class Clock:
    """A second passes each time it is read, so that all passes take the same."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1
        return self.now


def lookup_for(model, prompt):
    return PromptLookup(prompt, VOCABULARY, model.clock)


def drafted(model):
    return [length for length in model.passes if length > 1]


PROMPT = [*range(10, 50)]


def copying(count=40):
    """Return a script that says some tokens of its own, and then its prompt again."""
    return [*PROMPT, 1, 2, 3, 4, 5, 6, 7, 8, *PROMPT[:count], 1]


# --- tokens and passes


@pytest.mark.parametrize("count", [1, 2, 8, 9, 11, 12, 13, 14, 15, 20, 47, 48])
def test_copies_take_fewer_passes_and_end_where_they_should(count):
    model = ScriptedModel(copying(), VOCABULARY)
    expected = copying()[40 : 40 + count]
    assert decode(model, PROMPT, count, lookup_for(model, PROMPT)) == expected
    assert model.positions == len(PROMPT) + count - 1
    if count == 48:
        assert len(drafted(model)) >= 9
        assert len(model.passes) <= 30
    plain = ScriptedModel(copying(), VOCABULARY)
    assert decode(plain, PROMPT, count) == expected
    assert plain.passes == [1] * (count - 1)


def test_without_anything_to_copy_every_pass_is_plain():
    model = ScriptedModel([*PROMPT, *range(50, 90)], VOCABULARY)
    decode(model, PROMPT, 38, lookup_for(model, PROMPT))
    assert model.passes == [1] * 37


def test_where_several_tokens_are_rounded_otherwise_it_ends_at_once():
    model = ScriptedModel(copying(), VOCABULARY, rounds_otherwise=True)
    lookup = lookup_for(model, PROMPT)
    assert decode(model, PROMPT, 48, lookup) == copying()[40:88]
    assert not lookup.is_on
    assert drafted(model) == [4]


def test_it_ends_where_even_right_drafts_do_not_pay():
    model = ScriptedModel(copying(), VOCABULARY, row_seconds=5)
    lookup = lookup_for(model, PROMPT)
    assert decode(model, PROMPT, 48, lookup) == copying()[40:88]
    assert not lookup.is_on
    # Each kind is tried once and measured twice, of which the first is not compared yet.
    assert len(drafted(model)) <= 6


def test_drafts_that_are_never_right_bring_longer_and_longer_pauses():
    # Every pair occurs again, and continues differently.
    script = PROMPT + [token for number in range(60, 80) for token in (10, 11, number, 30)]
    model = ScriptedModel([*script, 1, 1], VOCABULARY)
    decode(model, PROMPT, 80, lookup_for(model, PROMPT))
    places = [index for index, length in enumerate(model.passes) if length > 1]
    assert MAX_MISSES < len(places) < 12
    assert max(np.diff(places)) >= 16


def test_drafts_of_which_too_little_is_right_bring_a_pause():
    lookup = PromptLookup([1, 2, 3, 4, 5, 6, 1, 2, 3], VOCABULARY)
    for _ in range(4):
        lookup.passed(0, 1, 1.0)
    for _ in range(3):
        lookup.passed(3, 2, 2.1)
    assert lookup.has_draft
    lookup.passed(3, 2, 2.1)
    assert not lookup.has_draft
    lookup.add([1, 2, 3] * 3)
    assert lookup.has_draft


@pytest.mark.parametrize(("extra", "size"), [(0.0, 3), (0.6, 2)])
def test_the_longer_draft_is_taken_only_if_it_pays(extra, size):
    lookup = PromptLookup([1, 2, 3, 4, 5, 6, 1, 2, 3], VOCABULARY)
    for _ in range(4):
        lookup.passed(0, 1, 1.0)
    for right in (True, False):
        lookup.passed(3, 4 if right else 2, 1.0 + extra)
        lookup.passed(2, 3 if right else 2, 1.0)
    assert lookup.draft(10) == [4, 5, 6][:size]
    assert lookup.draft(2) == [4, 5]
    assert lookup.draft(1) == []


def test_images_are_never_drafted():
    image = VOCABULARY + 3
    lookup = PromptLookup([1, 2, 3, image, image, 1, 2, 3], VOCABULARY)
    for _ in range(4):
        lookup.passed(0, 1, 1.0)
    assert lookup.draft(10) == []
    lookup.add([7, 8, 9, 1, 2, 3])
    assert lookup.draft(10) == [7, 8, 9]  # the last occurrence counts


def test_a_short_cycle_continues_in_the_draft():
    lookup = PromptLookup([5, 6, 5, 6, 5, 6], VOCABULARY)
    for _ in range(4):
        lookup.passed(0, 1, 1.0)
    assert lookup.draft(3) == [5, 6, 5]


def test_an_answer_that_was_cancelled_does_not_count_as_a_second():
    model = ScriptedModel(copying(), VOCABULARY)

    def work():
        engine = Engine(model)
        for _ in range(2):
            cache = [KVCache()]
            logits = model.head(model(mx.array([PROMPT]), cache)[:, -1])
            row = Row(48, lookup=PromptLookup(PROMPT, VOCABULARY, Clock()))
            model.passes.clear()
            engine.add([row], cache, logits)
            for _ in range(40):
                engine.step()
            row.cancelled = True
            yield max(model.passes)

    assert device.run(lambda: list(work())) == [4, 4]


# --- with a real model


@pytest.fixture
def always(monkeypatch):
    """Make lookup pay by a clock of passes; return the lengths of passes after each prefill."""
    lengths, run = [], Decoder.__call__

    def decoder(self, embeddings, *arguments):
        lengths.append(embeddings.shape[1])
        return run(self, embeddings, *arguments)

    monkeypatch.setattr(Decoder, "__call__", decoder)
    monkeypatch.setattr(answer, "PromptLookup", partial(PromptLookup, clock=Clock()))
    return lengths


def test_the_same_tokens_in_all_goldens(tiny, case, always):
    for text, images in zip(case.texts, case.images, strict=True):
        options = {**OPTIONS, **case.overrides, "max_tokens": 60}
        options = {name: value for name, value in options.items() if name != "padding"}
        expected = generate(*tiny, text, images, **options)
        found = generate(*tiny, text, images, prompt_lookup=True, **options)
        assert found.token_ids == expected.token_ids
        assert found.text == expected.text


@pytest.mark.parametrize(("dtype", "cases"), [("float32", 100), ("bfloat16", 50), ("float16", 50)])
def test_the_same_tokens_in_random_cases(golden_folder, always, dtype, cases):
    model, _ = jvlm_mlx.load(golden_folder / "tiny", dtype=dtype)
    del model.decoder.layers[1:]  # for time
    # What was said before counts for little, so that answers soon repeat themselves.
    out = model.decoder.layers[0].attention.out
    out.weight = out.weight * 0.02
    model.prepare()
    random = np.random.default_rng(5)

    def tokens(prompt, lookup):
        cache = model.make_cache()
        hidden = model.decoder(model.decoder.embed(np.array([prompt])), cache)
        engine = Engine(model)
        engine.add([Row(40, lookup=lookup)], cache, model.head(hidden[:, -1]))
        found = []
        while engine.rows:
            found += [one.token for one in engine.step()]
        return found

    passes, still_on = 0, False
    for _ in range(cases):
        passage = random.integers(0, 500, random.integers(3, 12)).tolist()
        prompt = [511, *passage * random.integers(1, 5), *random.integers(0, 500, 4).tolist()]
        always.clear()
        lookup = PromptLookup(prompt, 500, Clock())
        found = device.run(partial(tokens, prompt, lookup))
        passes += len(always) - 1
        still_on = still_on or lookup.is_on
        assert found == device.run(partial(tokens, prompt, None))
    # A library of matrix products may round several tokens otherwise.
    assert passes < 39 * cases or not still_on


def test_streams_chats_and_batches_of_one(tiny, golden_folder, always):
    image = golden_folder / "images" / "dot.png"
    options = {**OPTIONS, "max_tokens": 60}
    expected = generate(*tiny, "What?", image, **options).token_ids
    always.clear()
    found = list(stream_generate(*tiny, "What?", image, prompt_lookup=True, **options))
    assert tuple(response.token for response in found) == expected
    of_one = [length for length in always if 1 < length < 5]
    assert of_one
    session = ChatSession(*tiny, prompt_lookup=True, **options)
    assert tuple(one.token for one in session.ask("What?", image)) == expected
    requests = [{"prompt": "What?", "images": image}] * 2
    always.clear()
    for response in batch_generate(*tiny, requests, batch_size=1, prompt_lookup=True, **options):
        assert response.result.token_ids == expected
    assert [length for length in always if 1 < length < 5] == of_one * 2


def test_a_second_answer_in_the_batch_ends_it(tiny, always):
    model, _ = tiny
    prompts = [[511, *[5, 9, 7] * 4], [511, 100, 7, 7, 30]]

    def run(lookup, joining_after):
        engine, rows = Engine(model), [Row(60), Row(20)]
        rows[0].lookup = lookup
        tokens = {id(row): [] for row in rows}
        step = 0
        while step <= joining_after or engine.rows:
            if step in (0, joining_after):
                place = min(step, 1)
                cache = model.make_cache()
                hidden = model.decoder(model.decoder.embed(np.array([prompts[place]])), cache)
                engine.add([rows[place]], cache, model.head(hidden[:, -1]))
            for token in engine.step():
                tokens[id(token.row)].append(token.token)
            step += 1
        return [tokens[id(row)] for row in rows]

    expected = device.run(partial(run, None, 7))
    for joining_after in (1, 2, 7, 12, 13, 14, 15, 30):
        lookup = PromptLookup(prompts[0], 500, Clock())
        assert device.run(partial(run, lookup, joining_after)) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0, "seed": 0},
        {"repetition_penalty": 1.1},
        {"logprobs": 0},
        {"max_kv_size": 200},
        {"logits_processors": [lambda _, logits: logits]},
        {"sampler": lambda logprobs: mx.argmax(logprobs, axis=-1)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_other_ways_to_choose_tokens_are_left_alone(tiny, golden_folder, always, options):
    image = golden_folder / "images" / "dot.png"
    options = {"max_tokens": 60, **OPTIONS, **options}
    found = generate(*tiny, "What?", image, prompt_lookup=True, **options)
    assert all(length == 1 for length in always[1:])
    assert found.token_ids == generate(*tiny, "What?", image, **options).token_ids


def test_what_a_draft_left_in_the_cache_is_not_reused(tiny, always):
    options = {**OPTIONS, "max_tokens": 60}
    plain = generate(*tiny, "Hi", **options)
    caches = GenerationCaches()
    for stop_after in (13, 14, 15, 16, 21):
        responses = stream_generate(*tiny, "Hi", caches=caches, prompt_lookup=True, **options)
        tokens = [next(responses).token for _ in range(stop_after)]
        responses.close()
        assert tuple(tokens) == plain.token_ids[:stop_after]
    session, expected = (
        ChatSession(*tiny, caches=own, **options) for own in (caches, GenerationCaches(0))
    )
    for question in ("Hi", "And then?"):
        found = [one.token for one in session.ask(question, prompt_lookup=True)]
        assert found == [one.token for one in expected.ask(question)]
