"""The decode loop and the prefill: how often the model runs, and what rows may ask for."""

import math

import mlx.core as mx
import numpy as np
import pytest

import jvlm_mlx
from jvlm_mlx import GenerationCaches, GenerationOptions, RequestError, batch_generate, generate
from jvlm_mlx.generation import device
from jvlm_mlx.generation.engine import Engine
from jvlm_mlx.generation.row import Row
from jvlm_mlx.generation.sampling import greedy
from jvlm_mlx.model import Model
from jvlm_mlx.model.decoder import Decoder

OPTIONS = {"stop_token_ids": (), "repetition_guard": False}


@pytest.fixture
def calls(monkeypatch):
    """Positions that went through the decoder and the head, call by call."""
    seen = {"decoder": [], "head": []}
    run_decoder, run_head = Decoder.__call__, Model.head

    def decoder(self, embeddings, *arguments):
        seen["decoder"].append(embeddings.shape[1])
        return run_decoder(self, embeddings, *arguments)

    def head(self, hidden):
        seen["head"].append(math.prod(hidden.shape[:-1]))
        return run_head(self, hidden)

    monkeypatch.setattr(Decoder, "__call__", decoder)
    monkeypatch.setattr(Model, "head", head)
    return seen


def prefill(model, prompt):
    """Return cache and logits of a prompt of token ids."""
    cache = model.make_cache()
    hidden = model.decoder(model.decoder.embed(mx.array([prompt])), cache)
    return cache, model.head(hidden[:, -1])


# --- how often the model runs


def test_one_pass_gives_the_first_token(tiny, calls):
    result = generate(*tiny, "What is this?", max_tokens=1, **OPTIONS)
    assert calls == {"decoder": [result.prompt_tokens], "head": [1]}


def test_the_head_sees_the_last_position_of_the_last_chunk_alone(tiny, calls):
    result = generate(*tiny, "What is this? " * 5, max_tokens=1, prefill_step_size=30, **OPTIONS)
    whole, rest = divmod(result.prompt_tokens, 30)
    assert calls == {"decoder": [30] * whole + [rest] * (rest > 0), "head": [1]}


def test_every_further_token_is_one_pass(tiny, calls):
    generate(*tiny, "Hi", max_tokens=6, **OPTIONS)
    assert calls["decoder"][1:] == [1] * 5
    assert calls["head"] == [1] * 6


def test_a_follow_up_prefills_only_what_is_new_and_in_one_pass(tiny, calls):
    caches = GenerationCaches()
    generate(*tiny, "What is this?", max_tokens=1, caches=caches, **OPTIONS)
    calls["decoder"].clear()
    result = generate(*tiny, "What is that?", max_tokens=1, caches=caches, **OPTIONS)
    assert result.cached_tokens > 0
    assert calls["decoder"] == [result.prompt_tokens - result.cached_tokens]


def test_nothing_runs_further_ahead_than_one_step(tiny, calls):
    answer = jvlm_mlx.stream_generate(*tiny, "Hi", max_tokens=100, **OPTIONS)
    next(answer)
    assert len(calls["head"]) == 1  # the first token waits for nothing but its prompt
    for count in (2, 3, 4):
        next(answer)
        assert len(calls["head"]) == count + 1
    answer.close()


def test_a_batch_decodes_in_one_pass_a_step(tiny, calls):
    requests = [{"prompt": prompt} for prompt in ("Hi", "Hello there", "What?")]
    list(batch_generate(*tiny, requests, max_tokens=40, batch_size=3, **OPTIONS))
    assert 3 in calls["head"]
    assert sum(calls["head"]) <= 3 * 40 + 3  # perhaps a step ahead of a row that ended


# --- rows


@pytest.fixture
def alone(tiny):
    model, _ = tiny

    def run(prompt, tokens):
        def work():
            engine = Engine(model)
            engine.add([Row(tokens)], *prefill(model, prompt))
            return [engine.step()[0].token for _ in range(tokens)]

        return device.run(work)

    return run


def test_rows_join_and_leave_between_steps(tiny, alone):
    model, _ = tiny
    prompts = {"a": [511, 5, 9], "b": [511, 100, 7, 7, 30], "c": [511, 44]}

    def work():
        engine = Engine(model)
        rows = {name: Row(8) for name in prompts}
        names = {id(row): name for name, row in rows.items()}
        tokens = {name: [] for name in prompts}

        def steps(count):
            for _ in range(count):
                for token in engine.step():
                    tokens[names[id(token.row)]].append(token.token)

        engine.add([rows["a"]], *prefill(model, prompts["a"]))
        steps(2)
        engine.add([rows["b"]], *prefill(model, prompts["b"]))
        steps(3)
        engine.add([rows["c"]], *prefill(model, prompts["c"]))
        rows["a"].cancelled = True
        steps(20)
        assert engine.rows == []
        return tokens

    tokens = device.run(work)
    assert tokens["a"] == alone(prompts["a"], 8)[:5]
    assert tokens["b"] == alone(prompts["b"], 8)
    assert tokens["c"] == alone(prompts["c"], 8)


class OnlyEven:
    """A grammar of even tokens, each of which may occur once."""

    def __init__(self):
        self.accepted = []

    def mask(self, logits):
        tokens = np.arange(logits.shape[-1])
        allowed = (tokens % 2 == 0) & ~np.isin(tokens, self.accepted)
        return mx.where(mx.array(allowed), logits, -mx.inf)

    def accept(self, token):
        self.accepted.append(token)


def test_a_grammar_sees_every_token_before_the_next_is_sampled(tiny):
    grammar = OnlyEven()
    result = generate(*tiny, "Hi", max_tokens=10, grammar=grammar, **OPTIONS)
    assert list(result.token_ids) == grammar.accepted
    assert all(token % 2 == 0 for token in result.token_ids)
    assert len(set(result.token_ids)) == 10


def test_rows_with_a_grammar_share_a_batch_with_others(tiny):
    grammars = [OnlyEven(), OnlyEven()]
    requests = [{"prompt": "Hi", "grammar": one} for one in (*grammars, None, None)]
    found = sorted(batch_generate(*tiny, requests, max_tokens=6, **OPTIONS), key=lambda r: r.index)
    alone = [
        generate(*tiny, "Hi", max_tokens=6, grammar=one, **OPTIONS).token_ids
        for one in (OnlyEven(), OnlyEven(), None, None)
    ]
    assert [response.result.token_ids for response in found] == alone
    assert grammars[0].accepted == list(alone[0])


def test_samplers_and_processors_of_the_caller(tiny):
    seen = []

    def forbid(tokens, logits):
        seen.append(tokens.tolist())
        return mx.where(mx.arange(logits.shape[-1]) == banned, -mx.inf, logits)

    plain = generate(*tiny, "Hi", max_tokens=4, **OPTIONS).token_ids
    banned = plain[0]
    found = generate(*tiny, "Hi", max_tokens=4, logits_processors=[forbid], **OPTIONS).token_ids
    assert banned not in found
    assert seen[1] == [*seen[0], found[0]]
    last = generate(
        *tiny, "Hi", max_tokens=3, sampler=lambda logprobs: mx.argmin(logprobs, axis=-1), **OPTIONS
    )
    assert last.token_ids[0] != plain[0]


def test_a_row_whose_processor_fails_ends_alone(tiny, caplog):
    def fail(tokens, logits):
        raise ZeroDivisionError("by design")

    requests = [{"prompt": "Hi", "logits_processors": [fail]}, {"prompt": "Hi"}]
    found = sorted(batch_generate(*tiny, requests, max_tokens=9, **OPTIONS), key=lambda r: r.index)
    assert found[0].error == "ZeroDivisionError: by design"
    assert found[1].result.token_ids == generate(*tiny, "Hi", max_tokens=9, **OPTIONS).token_ids
    with pytest.raises(ZeroDivisionError):
        generate(*tiny, "Hi", logits_processors=[fail])


@pytest.mark.parametrize("count", [0, 3])
def test_log_probabilities(tiny, count):
    model, processor = tiny
    responses = list(jvlm_mlx.stream_generate(*tiny, "Hi", max_tokens=3, logprobs=count, **OPTIONS))
    prompt = processor.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=True)
    for response in responses:
        logits = model(np.array([prompt]))[0, -1]
        expected = np.array(logits - mx.logsumexp(logits))
        assert response.logprob == pytest.approx(expected[response.token], abs=1e-4)
        order = np.argsort(-expected)[:count].tolist()
        assert [token for token, _ in response.top_logprobs] == order
        assert [one for _, one in response.top_logprobs] == pytest.approx(
            expected[order].tolist(), abs=1e-4
        )
        prompt.append(response.token)
    result = jvlm_mlx.GenerationResult.collect(responses)
    assert result.logprobs == tuple(response.logprob for response in responses)
    assert generate(*tiny, "Hi", max_tokens=3, **OPTIONS).logprobs is None


# --- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": "5"}, "max_tokens must be an integer: found '5', type str"),
        ({"max_tokens": True}, "max_tokens must be an integer"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"temperature": 1e-40}, "temperature is 1e-40; it must be 0, or from 0.001 on"),
        ({"top_p": 1e-320}, "top_p is 1e-320"),
        ({"repetition_context_size": 10**13}, "repetition_context_size is 10000000000000"),
        ({"presence_penalty": -(10**30)}, "presence_penalty is -1"),
        ({"frequency_penalty": 10**400}, "frequency_penalty is inf"),
        ({"kv_group_size": 10**30}, "kv_group_size is 1"),
        ({"temprature": 1}, "no option 'temprature'; did you mean 'temperature'"),
        ({"verbose": True}, "no option 'verbose'"),
        ({"stop": 5}, "stop must be a list"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids must be an integer"),
        ({"logprobs": 21}, "logprobs is 21"),
        ({"sampler": 3}, "sampler must be a function"),
        ({"wired_limit": "all"}, "wired_limit must be an integer"),
        ({"repetition_guard": 1}, "repetition_guard must be true or false"),
        ({"options": 3}, "options must be GenerationOptions or a mapping"),
        ({"image": "a.png", "images": "b.png"}, "give one of them"),
    ],
)
def test_options_that_make_no_sense_are_refused(tiny, options, message):
    with pytest.raises(RequestError, match=message.replace("(", r"\(")):
        jvlm_mlx.stream_generate(*tiny, "Hi", **options)


def test_options_as_people_give_them(tiny, golden_folder):
    image = golden_folder / "images" / "dot.png"
    expected = generate(*tiny, "What?", [image], max_tokens=3, temperature=0.5, seed=1, **OPTIONS)
    options = GenerationOptions(max_tokens=9, temperature=0.5, seed=np.int64(1), **OPTIONS)
    for given in (options, {**OPTIONS, "max_tokens": 9, "temp": 0.5, "seed": 1}):
        found = generate(*tiny, "What?", image=image, options=given, max_tokens=3)
        assert found.token_ids == expected.token_ids


def test_a_batch_of_bare_prompts_and_images(tiny, golden_folder):
    images = [golden_folder / "images" / f"{name}.png" for name in ("dot", "square")]
    options = {**OPTIONS, "max_tokens": 3}
    for arguments in ({"prompts": ["One?", "Two?"]}, {"requests": ["One?", "Two?"]}):
        responses = batch_generate(*tiny, **arguments, images=images, **options)
        for response in responses:
            prompt = ("One?", "Two?")[response.index]
            expected = generate(*tiny, prompt, images[response.index], **options)
            assert response.result.token_ids == expected.token_ids
    with pytest.raises(RequestError, match="images must be a list of 2"):
        batch_generate(*tiny, ["One?", "Two?"], images[:1])
    with pytest.raises(RequestError, match="either requests or prompts"):
        batch_generate(*tiny)


def test_greedy_is_the_argmax_of_what_the_model_gives():
    logits = mx.random.normal((3, 50), key=mx.random.key(0))
    assert greedy(logits).tolist() == np.array(logits).argmax(-1).tolist()
