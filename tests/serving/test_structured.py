"""Answers by a JSON schema: valid JSON, or a finish reason that says it was cut."""

import json
import re

import jsonschema
import pytest

pytest.importorskip("llguidance")

import mlx.core as mx

import jvlm_mlx
from jvlm_mlx.generation.json_grammar import JsonGrammars
from tests.serving.conftest import check_schema, image_uri, user

SCHEMA = {
    "type": "object",
    "properties": {
        "number": {"type": "integer", "minimum": 0, "maximum": 99},
        "color": {"enum": ["red", "blue"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["number", "color", "tags"],
    "additionalProperties": False,
}


def by_schema(schema):
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.5, "seed": 3}])
def test_the_answer_satisfies_the_schema(client, sampling):
    for image in ("dot", "shapes"):
        _, body = client.chat(
            [user("What is this?", image_uri(image))], max_tokens=200,
            response_format=by_schema(SCHEMA), **sampling,
        )  # fmt: skip
        (choice,) = body["choices"]
        assert choice["finish_reason"] == "stop"
        jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"const": -(2**63)}, "has the number -9223372036854775808; at most 2**53"),
        ({"enum": [1, {"a": [2**53 + 1]}]}, "has the number 9007199254740993; at most 2**53"),
        ({"type": "integer", "multipleOf": 999983}, "common multiple of 999983; at most 10000"),
        (
            {"allOf": [{"type": "integer", "multipleOf": n} for n in (9973, 9967)]},
            "common multiple of 99400891; at most 10000",
        ),
        ({"type": "number", "multipleOf": 12345.678}, "common multiple of 12345678; at most 10000"),
        ({"type": "number", "multipleOf": 1e300}, "at most 10000"),
    ],
)
def test_schemas_that_would_break_or_stall_the_library_are_refused(tiny, part, message):
    """llguidance ends the process for the first, and takes seconds and gigabytes for others."""
    model, processor = tiny
    grammars = JsonGrammars(processor.tokenizer, model.config.decoder.vocab_size)
    with pytest.raises(jvlm_mlx.RequestError, match=re.escape(message)) as caught:
        grammars.make({"type": "object", "properties": {"a": part}})
    assert "\n" not in str(caught.value)


def test_schemas_that_are_too_deep_are_refused(tiny):
    model, processor = tiny
    grammars = JsonGrammars(processor.tokenizer, model.config.decoder.vocab_size)
    schema = {"type": "string"}
    for _ in range(5000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(jvlm_mlx.RequestError, match="nested more than"):
        grammars.make(schema)


def test_an_answer_that_cannot_follow_its_schema_any_further_ends_in_one_line(tiny):
    model, processor = tiny
    grammar = JsonGrammars(processor.tokenizer, model.config.decoder.vocab_size).make(SCHEMA)
    grammar.accept(5)
    grammar.accept(5)
    with pytest.raises(jvlm_mlx.RequestError, match="schema cannot be followed") as caught:
        grammar.mask(mx.zeros((1, model.config.decoder.vocab_size)))
    assert "\n" not in str(caught.value)


def test_multiples_as_people_ask_for_them(tiny):
    model, processor = tiny
    grammars = JsonGrammars(processor.tokenizer, model.config.decoder.vocab_size)
    parts = {f"p{n}": {"type": "number", "multipleOf": n} for n in (1, 5, 0.01, 0.5, 100, 1e-3)}
    grammars.make({"type": "object", "properties": parts | {"x": {"const": -(2**53)}}})


def test_any_object(client):
    for seed in range(4):
        _, body = client.chat(
            [user("Hi")], max_tokens=60, temperature=1.0, seed=seed,
            response_format={"type": "json_object"},
        )  # fmt: skip
        (choice,) = body["choices"]
        text = choice["message"]["content"]
        assert text.startswith("{")
        if choice["finish_reason"] == "stop":
            assert isinstance(json.loads(text), dict)
        else:
            assert choice["finish_reason"] == "length"


def test_log_probabilities_of_forbidden_tokens_are_numbers(client):
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    asked = {"logprobs": True, "top_logprobs": 5, "response_format": by_schema(schema)}
    _, body = client.chat([user("Hi")], **asked)
    check_schema(body, "CreateChatCompletionResponse")
    lowest = min(
        alternative["logprob"]
        for token in body["choices"][0]["logprobs"]["content"]
        for alternative in token["top_logprobs"]
    )
    assert lowest == -9999.0
    client.stream([user("Hi")], **asked)


def test_rows_with_and_without_a_grammar_do_not_disturb_each_other(client, tiny):
    plain = jvlm_mlx.generate(*tiny, "Hi", max_tokens=24).text
    chunks = client.stream([user("Hi")], n=2, response_format=by_schema(SCHEMA), max_tokens=100)
    texts = ["", ""]
    for chunk in chunks:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts[0] == texts[1]
    jsonschema.validate(json.loads(texts[0]), SCHEMA)
    assert client.chat([user("Hi")])[1]["choices"][0]["message"]["content"] == plain


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"$ref": "#/nowhere"},
        {"type": "string", "pattern": "("},
        {"not": {}},
        {"type": "string", "enum": ["x" * 200_000]},
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused(client, schema):
    wrapped = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    status, body = client.chat([user("Hi")], response_format=by_schema(wrapped))
    assert (status, body["error"]["param"]) == (400, "response_format")
    assert "schema" in body["error"]["message"]
    assert len(body["error"]["message"]) < 300


def test_without_the_library_one_line_says_what_to_install(tiny, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(jvlm_mlx.RequestError, match="structured"):
        JsonGrammars(tiny[1].tokenizer, 10)
