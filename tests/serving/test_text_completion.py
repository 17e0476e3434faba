"""Text completions: the same tokens as a plain run, and scores that evaluation tools can use."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import mlx.core as mx
import numpy as np
import pytest

from jvlm_mlx.serving import service
from tests.serving.conftest import check_schema


def complete(client, prompt, **parameters):
    status, body = client.post({"prompt": prompt, **parameters}, path="/v1/completions")
    assert status == 200, body
    check_schema(body, "CreateCompletionResponse")
    return body


def plain_logprobs(tiny, tokens):
    """Return log probabilities (L, V) of what follows each place, BOS first."""
    model, processor = tiny
    logits = model(np.array([[processor.tokenizer.bos_token_id, *tokens]]))[0].astype(mx.float32)
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


@pytest.mark.parametrize("length", [1, 5, 600])  # more than a chunk, too
def test_echo_scores_every_token_of_the_prompt(client, tiny, length):
    tokens = [int(one) for one in np.random.default_rng(0).integers(0, 400, length)]
    body = complete(client, tokens, echo=True, logprobs=2, max_tokens=0)
    (choice,) = body["choices"]
    expected = plain_logprobs(tiny, tokens)
    found = choice["logprobs"]
    assert len(found["tokens"]) == len(found["text_offset"]) == length
    np.testing.assert_allclose(
        found["token_logprobs"], expected[np.arange(length), tokens], atol=2e-4
    )
    assert choice["text"] == tiny[1].decode(tokens)
    assert body["usage"] == {**body["usage"], "prompt_tokens": length + 1, "completion_tokens": 0}


def test_what_is_generated_follows_the_prompt(client, tiny):
    body = complete(client, ["Hello", "Good day"], max_tokens=4, logprobs=1, echo=True)
    for index, text in enumerate(("Hello", "Good day")):
        choice = body["choices"][index]
        tokens = tiny[1].tokenizer.encode(text)
        assert choice["index"] == index
        assert choice["text"].startswith(text)
        assert len(choice["logprobs"]["tokens"]) == len(tokens) + 4
        best = int(plain_logprobs(tiny, tokens)[-1].argmax())
        after = choice["logprobs"]["token_logprobs"][len(tokens)]
        assert after == pytest.approx(plain_logprobs(tiny, tokens)[-1][best], abs=2e-4)
    alone = complete(client, "Hello", max_tokens=4)["choices"][0]
    assert alone["logprobs"] is None
    assert body["choices"][0]["text"] == "Hello" + alone["text"]


def test_prompts_are_scored_one_request_at_a_time(client, monkeypatch):
    score, busy, most = service.score_prompt, threading.Lock(), []

    def watched(*given):
        most.append(busy.acquire(blocking=False))
        try:
            return score(*given)
        finally:
            if most[-1]:
                busy.release()

    monkeypatch.setattr(service, "score_prompt", watched)
    with ThreadPoolExecutor(4) as pool:
        asked = partial(complete, client, [[5, 6, 7], [8]], echo=True, logprobs=1, max_tokens=0)
        answers = [future.result() for future in [pool.submit(asked) for _ in range(8)]]
    assert len({str(one["choices"]) for one in answers}) == 1
    assert most == [True] * 16


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [10**9]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": "a\ud800"}, "prompt"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "n": 2}, "n"),
        ({"prompt": "a", "stream": True}, "stream"),
        ({"prompt": "a", "logprobs": 50}, "logprobs"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
    ],
)
def test_what_is_refused_is_named(client, body, param):
    status, answer = client.post(body, path="/v1/completions")
    assert (status, answer["error"]["param"]) == (400, param)
    check_schema(answer, "ErrorResponse")
