"""Chat completions over the wire: valid answers, equal to those of `generate`."""

import json
import threading

import pytest

import jvlm_mlx
from jvlm_mlx.progress import ProgressEvent
from tests.serving.conftest import MODEL, check_schema, image_uri, running, user

QUESTION = "What is this?"


def expected(tiny, golden_folder, text=QUESTION, image="dot", **options):
    images = None if image is None else str(golden_folder / "images" / f"{image}.png")
    return jvlm_mlx.generate(*tiny, text, images, **{"max_tokens": 24, **options})


def test_a_whole_answer(client, tiny, golden_folder):
    status, body = client.chat([user(QUESTION, image_uri())])
    assert status == 200
    check_schema(body, "CreateChatCompletionResponse")
    result = expected(tiny, golden_folder)
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": result.text, "refusal": None}
    assert choice["finish_reason"] == "length"
    assert body["model"] == MODEL
    usage = body["usage"]
    assert usage["prompt_tokens"] == result.prompt_tokens
    assert usage["completion_tokens"] == 24
    assert usage["total_tokens"] == usage["prompt_tokens"] + 24
    timings = body["timings"]  # an extension, as llama.cpp's
    assert timings["cache_n"] + timings["prompt_n"] == usage["prompt_tokens"]
    assert (timings["predicted_n"], timings["predicted_per_second"] > 0) == (24, True)


def test_a_stream_is_the_same_answer(client, tiny, golden_folder):
    chunks = client.stream([user(QUESTION, image_uri())], stream_options={"include_usage": True})
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
    assert {chunk["created"] for chunk in chunks} == {chunks[0]["created"]}
    first, *middle, last, costs = chunks
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all("role" not in chunk["choices"][0]["delta"] for chunk in middle)
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in middle)
    assert text == expected(tiny, golden_folder).text
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "length")
    assert costs["choices"] == []
    assert costs["usage"]["completion_tokens"] == 24
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    plain = client.stream([user(QUESTION, image_uri())])
    assert all("usage" not in chunk for chunk in plain)


@pytest.mark.parametrize(
    ("parameters", "options"),
    [
        ({"max_completion_tokens": 3}, {"max_tokens": 3}),
        ({"temperature": 1.0, "seed": 5}, {"temperature": 1.0, "seed": 5}),
        ({"frequency_penalty": 2, "presence_penalty": 1},
         {"frequency_penalty": 2, "presence_penalty": 1}),
        ({"temperature": 0.8, "top_p": 0.9, "top_k": 7, "min_p": 0.01, "seed": 1},
         {"temperature": 0.8, "top_p": 0.9, "top_k": 7, "min_p": 0.01, "seed": 1}),
        ({"max_crops": 1}, {"max_crops": 1}),
        ({"do_resize": False}, {"do_resize": False}),
    ],
)  # fmt: skip
def test_parameters_are_honored(client, tiny, golden_folder, parameters, options):
    _, body = client.chat([user(QUESTION, image_uri("shapes"))], **parameters)
    result = expected(tiny, golden_folder, image="shapes", **options)
    assert body["choices"][0]["message"]["content"] == result.text
    assert body["usage"]["prompt_tokens"] == result.prompt_tokens


def test_stop_texts_end_an_answer(client, tiny, golden_folder):
    text = expected(tiny, golden_folder, image=None).text
    stop = text[4:6]
    _, body = client.chat([user(QUESTION)], stop=[stop])
    assert body["choices"][0]["message"]["content"] == text[: text.index(stop)]
    assert body["choices"][0]["finish_reason"] == "stop"


def test_several_choices(client, tiny, golden_folder):
    sampled = {"temperature": 1.0, "seed": 7}
    _, body = client.chat([user(QUESTION)], n=3, **sampled)
    check_schema(body, "CreateChatCompletionResponse")
    texts = [choice["message"]["content"] for choice in body["choices"]]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert texts == [
        expected(tiny, golden_folder, image=None, temperature=1.0, seed=7 + index).text
        for index in range(3)
    ]
    chunks = client.stream([user(QUESTION)], n=3, **sampled)
    streamed = ["", "", ""]
    for chunk in chunks:
        (choice,) = chunk["choices"]
        streamed[choice["index"]] += choice["delta"].get("content", "")
    assert streamed == texts


def test_log_probabilities(client, tiny, golden_folder):
    _, body = client.chat([user(QUESTION)], logprobs=True, top_logprobs=2)
    check_schema(body, "CreateChatCompletionResponse")
    (choice,) = body["choices"]
    tokens = choice["logprobs"]["content"]
    joined = b"".join(bytes(token["bytes"]) for token in tokens)
    assert joined.decode("utf-8", "replace") == choice["message"]["content"]
    result = expected(tiny, golden_folder, image=None, logprobs=2)
    found = [token["logprob"] for token in tokens]
    with_text = [
        logprob
        for token, logprob in zip(result.token_ids, result.logprobs, strict=True)
        if tiny[1].tokenizer.token_bytes(token)
    ]
    assert found == pytest.approx(with_text, abs=1e-4)
    for token in tokens:
        assert len(token["top_logprobs"]) == 2
        assert token["logprob"] == pytest.approx(token["top_logprobs"][0]["logprob"])
    chunks = client.stream([user(QUESTION)], logprobs=True)
    streamed = [
        token["logprob"]
        for chunk in chunks
        for choice in chunk["choices"]
        for token in (choice["logprobs"] or {"content": []})["content"]
    ]
    assert streamed == pytest.approx(found, abs=1e-4)


def test_a_logit_bias_forbids_a_token(client, tiny):
    _, body = client.chat([user(QUESTION)], max_tokens=1)
    text = body["choices"][0]["message"]["content"]
    token = jvlm_mlx.generate(*tiny, QUESTION, max_tokens=1).token_ids[0]
    bias = {str(token): -100, "99999999": 100}
    _, biased = client.chat([user(QUESTION)], max_tokens=1, logit_bias=bias)
    assert biased["choices"][0]["message"]["content"] != text


def test_models_and_health(client):
    for prefix in ("/v1", ""):
        status, data = client.get(f"{prefix}/models")
        assert status == 200
        check_schema(json.loads(data), "ListModelsResponse")
        status, data = client.get(f"{prefix}/models/{MODEL}")
        check_schema(json.loads(data), "Model")
        assert client.get(f"{prefix}/models/other/one")[0] == 404
        status, data = client.get(f"{prefix}/health")
        assert (status, json.loads(data)["status"]) == (200, "ok")
    status, body = client.post({"model": "gpt", "messages": [user("Hi")]})
    assert (status, body["error"]["code"]) == (404, "model_not_found")
    status, data = client.get("/metrics")
    assert status == 200
    assert b'\njvlm_requests_total{outcome="finished"} ' in data


def test_the_tiles_of_an_image(client, tiny):
    status, data = client.get("/v1/image-layout?width=300&height=200")
    layout = tiny[1].image_layout(300, 200)
    found = json.loads(data)
    assert (status, found["num_tiles"]) == (200, layout.num_tiles)
    assert len(found["tiles"]) == layout.num_tiles - 1
    assert found["tiles"][0][:2] == [0, 0]
    right, bottom = (max(tile[i] + tile[i + 2] for tile in found["tiles"]) for i in (0, 1))
    assert (right, bottom) == (pytest.approx(1), pytest.approx(1))
    for query in (
        "",
        "?width=0&height=1",
        "?width=-1&height=3",
        "?width=1e9&height=1",
        "?width=1&height=999",
    ):
        assert client.get(f"/v1/image-layout{query}")[0] == 400


def test_one_bad_image_spoils_nothing(client):
    before = client.chat([user(QUESTION)])[1]["choices"][0]["message"]["content"]
    status, body = client.chat([user(QUESTION, "data:image/png;base64,AAAA")])
    assert (status, body["error"]["code"]) == (400, "invalid_image")
    check_schema(body, "ErrorResponse")
    assert client.chat([user(QUESTION)])[1]["choices"][0]["message"]["content"] == before


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_errors_about_half_a_character_can_be_sent(client, path):
    body = b'{"messages": [{"role": "user", "content": "Hi"}], "prompt": "Hi", "\\ud800": 1}'
    status, answer = client.post(body, path=path)
    assert status == 400
    check_schema(answer, "ErrorResponse")
    body = b'{"messages": [{"role": "user", "content": "a\\ud800"}]}'
    assert client.post(body)[0] == 400


def test_while_the_model_is_loaded(tiny):
    go_on = threading.Event()

    def load(progress):
        progress(ProgressEvent("loading", 1, 4, "B"))
        assert go_on.wait(20)
        return tiny

    with running(load) as (client, service):
        response, data = client.request("POST", "/v1/chat/completions", {"messages": [user("Hi")]})
        assert (response.status, response.getheader("Retry-After")) == (503, "30")
        assert b"Model is loading, please retry in 30 seconds" in data
        for path in ("/v1/models", "/v1/models/jina-vlm"):
            response, data = client.request("GET", path)
            assert (response.status, response.getheader("Retry-After")) == (503, "30")
            check_schema(json.loads(data), "ErrorResponse")
        status, data = client.get("/health")
        assert status == 503
        assert json.loads(data) == {"status": "loading", "done": 1, "total": 4, "unit": "B"}
        go_on.set()
        service.wait()
        assert client.chat([user("Hi")], max_tokens=1)[0] == 200


def test_a_model_that_cannot_be_loaded():
    def load(_):
        raise jvlm_mlx.CheckpointError("there is no folder /nowhere")

    with running(load) as (client, service):
        service.wait()
        status, body = client.chat([user("Hi")])
        assert (status, body["error"]["code"]) == (503, "model_failed")
        assert "/nowhere" not in json.dumps(body)
        assert client.get("/health")[0] == 503


def test_sampling_settings_of_the_checkpoint_apply_where_nothing_else_is_said(tiny, monkeypatch):
    model, processor = tiny
    monkeypatch.setattr(processor, "generation_defaults", {"temperature": 1.0, "seed": 3})
    with running(lambda _: (model, processor)) as (client, service):
        service.wait()
        sampled = client.chat([user("Hi")])[1]["choices"][0]["message"]["content"]
        greedy = client.chat([user("Hi")], temperature=0)[1]["choices"][0]["message"]["content"]
    assert sampled == jvlm_mlx.generate(*tiny, "Hi", max_tokens=24, temperature=1.0, seed=3).text
    assert greedy == jvlm_mlx.generate(*tiny, "Hi", max_tokens=24, temperature=0.0).text != sampled
