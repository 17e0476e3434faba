"""Every parameter of a request is honored, ignored where it cannot matter, or refused by name."""

import json

import pytest

from jvlm_mlx.config.image_config import ImageOptions
from jvlm_mlx.serving.api_error import ApiError
from jvlm_mlx.serving.chat_request import ChatRequest
from tests.serving.conftest import check_schema

MESSAGES = [{"role": "user", "content": "Hi"}]


def read(**parameters):
    return ChatRequest.read({"model": "m", "messages": MESSAGES, **parameters})


def test_what_is_not_given_is_missing():
    request = read()
    assert (request.model, request.messages, request.options) == ("m", MESSAGES, {})
    assert (request.choices, request.stream, request.include_usage) == (1, False, False)
    assert (request.top_logprobs, request.image_options) == (None, ImageOptions())
    everything_null = dict.fromkeys(
        ("stop", "temperature", "tools", "n", "stream", "stream_options", "logit_bias", "audio"),
        None,
    )
    assert read(**everything_null) == request


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_tokens": 5, "max_completion_tokens": 7}, {"max_tokens": 7}),
        ({"temperature": 1, "top_p": 0.5}, {"temperature": 1.0, "top_p": 0.5}),
        ({"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.1},
         {"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.1}),
        ({"presence_penalty": -1, "frequency_penalty": 2},
         {"presence_penalty": -1.0, "frequency_penalty": 2.0}),
        ({"seed": 3}, {"seed": 3}),
        ({"seed": -1}, {"seed": 2**64 - 1}),
        ({"stop": "a"}, {"stop": ("a",)}),
        ({"stop": ["a", "b"]}, {"stop": ("a", "b")}),
    ],
)  # fmt: skip
def test_options(given, options):
    assert read(**given).options == options


def test_other_parameters():
    request = read(
        n=2, stream=True, stream_options={"include_usage": True}, logprobs=True, top_logprobs=3,
        logit_bias={"7": -100}, max_crops=4,
        do_resize=False, response_format={"type": "json_object"},
        tools=[{"type": "function"}], tool_choice="none", user="me", store=True,
        metadata={"a": "b"},
        modalities=["text"], parallel_tool_calls=True,
    )  # fmt: skip
    assert (request.choices, request.stream, request.include_usage) == (2, True, True)
    assert (request.top_logprobs, request.logit_bias) == (3, {7: -100.0})
    assert request.image_options == ImageOptions(max_crops=4, do_resize=False)
    assert request.options == {"schema": {"type": "object"}}
    assert read(logprobs=True).top_logprobs == 0
    schema = {"type": "object"}
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    assert read(response_format=wanted).options == {"schema": schema}
    assert read(response_format={"type": "text"}).options == {"schema": None}


def test_messages_are_brought_to_one_form():
    image = {"type": "image_url", "image_url": {"url": "data:x", "detail": "low"}}
    bare = {"type": "image_url", "image_url": "data:y"}
    text = {"type": "text", "text": "What?"}
    request = read(
        messages=[
            {"role": "developer", "content": "Be brief.", "name": "boss"},
            {"role": "user", "content": [image, bare, text]},
            {"role": "assistant", "content": None, "refusal": None},
            {"role": "assistant", "content": [text]},
        ]
    )
    assert request.messages == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": "data:x", "detail": "low"},
                {"type": "image_url", "image_url": "data:y", "detail": "auto"},
                text,
            ],
        },
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": [text]},
    ]


@pytest.mark.parametrize(
    ("given", "param", "said"),
    [
        ({"messages": []}, "messages", "at least one"),
        ({"messages": None}, "messages", "missing"),
        ({"messages": "Hi"}, "messages", "list"),
        ({"messages": ["Hi"]}, "messages[0]", "object"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "'tool'"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role", "user"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "text or a list"),
        ({"messages": [{"role": "user", "content": [3]}]}, "messages[0].content[0]", "image_url"),
        ({"messages": [{"role": "system", "content": [{"type": "image_url"}]}]},
         "messages[0].content[0]", "type text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
         "messages[0].content[0].image_url", "url must be a text"),
        ({"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "data:x", "detail": "huge"}}]}]},
         "messages[0].content[0].image_url.detail", "'huge'"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [1]}]},
         "messages[0].tool_calls", "not supported"),
        ({"model": 3}, "model", "a text"),
        ({"max_tokens": 0}, "max_tokens", "from 1"),
        ({"max_tokens": "5"}, "max_tokens", "whole number"),
        ({"max_tokens": True}, "max_tokens", "whole number"),
        ({"temperature": 2.5}, "temperature", "from 0 to 2"),
        ({"temperature": float("nan")}, "temperature", "from 0 to 2"),
        ({"top_p": -1}, "top_p", "from 0 to 1"),
        ({"n": 100}, "n", "from 1 to 16"),
        ({"stop": [""]}, "stop", "none of them empty"),
        ({"stop": list("abcde")}, "stop", "at most 4"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
        ({"top_logprobs": 2}, "top_logprobs", "logprobs: true"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "no token id"),
        ({"logit_bias": {"1": 101}}, "logit_bias[1]", "from -100 to 100"),
        ({"tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"response_format": {"type": "yaml"}}, "response_format.type", "json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}},
         "response_format.json_schema", "must be an object"),
        ({"audio": {"voice": "x"}}, "audio", "not supported"),
        ({"modalities": ["text", "audio"]}, "modalities", "supported: ['text']"),
        ({"min_pixels": 10**9}, "min_pixels", "not supported"),
        ({"max_memory": 1}, "max_memory", "not supported"),
        ({"temprature": 1}, "temprature", "not supported"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named(given, param, said):
    with pytest.raises(ApiError) as refused:
        read(**given)
    error = refused.value
    assert (error.status, error.param) == (400, param)
    assert said in str(error)
    check_schema(error.body, "ErrorResponse")


@pytest.mark.parametrize("body", [None, [], "text", 3])
def test_a_body_is_an_object(body):
    with pytest.raises(ApiError, match="JSON object"):
        ChatRequest.read(body)


def test_messages_of_errors_are_short():
    with pytest.raises(ApiError) as refused:
        read(temperature="x" * 10**6)
    assert len(json.dumps(refused.value.body)) < 400


def test_messages_about_half_characters_can_be_sent():
    with pytest.raises(ApiError) as refused:
        read(**{"\ud800": 1})
    assert "\\ud800" in json.dumps(refused.value.body, ensure_ascii=False).encode().decode()
