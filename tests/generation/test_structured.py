"""Answers by a JSON Schema, wherever there are options: whole, streamed, in a batch, in a chat."""

import json

import jsonschema
import pytest

pytest.importorskip("llguidance")

import jvlm_mlx
from jvlm_mlx.cli.main import main
from jvlm_mlx.errors import RequestError
from jvlm_mlx.generation.json_grammar import with_grammar
from jvlm_mlx.generation.options import GenerationOptions

SCHEMA = {
    "type": "object",
    "properties": {
        "number": {"type": "integer", "minimum": 0, "maximum": 99},
        "color": {"enum": ["red", "blue"]},
    },
    "required": ["number", "color"],
    "additionalProperties": False,
}
OTHER = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"],
         "additionalProperties": False}  # fmt: skip
MALFORMED = {"type": "nonsense"}


def check(text, schema=SCHEMA):
    jsonschema.validate(json.loads(text), schema)


@pytest.fixture
def image(golden_folder):
    return str(golden_folder / "images" / "dot.png")


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "seed": 2}, {"prompt_lookup": True}])
def test_generate(tiny, image, options):
    result = jvlm_mlx.generate(*tiny, "What?", image, schema=SCHEMA, max_tokens=200, **options)
    check(result.text)
    assert result.finish_reason == "stop"
    given = GenerationOptions(schema=SCHEMA, max_tokens=200, **options)
    for _ in range(2):  # the same options serve several answers
        assert jvlm_mlx.generate(*tiny, "What?", image, options=given).text == result.text


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 3},
        {"anyOf": [{"const": None}, {"type": "string", "maxLength": 5}]},
        {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
        {"type": "string", "format": "date"},
        {"enum": ["größer", "日本", 'a "quoted" text', "back\\slash", "line\nbreak"]},
        {"type": "object", "properties": {"näme": {"type": "boolean"}}, "required": ["näme"]},
        {"$defs": {"tree": {"type": "object", "properties": {
            "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 1}},
            "required": ["children"], "additionalProperties": False}}, "$ref": "#/$defs/tree"},
        {"type": ["integer", "null"]},
        {},
    ],
)  # fmt: skip
def test_schemas_of_many_kinds(tiny, schema):
    complete = 0
    for seed in range(3):
        result = jvlm_mlx.generate(
            *tiny, "Hi", schema=schema, max_tokens=120, temperature=1.0, seed=seed
        )
        if result.finish_reason == "stop":
            check(result.text, schema)
            complete += 1
        else:
            assert result.finish_reason in ("length", "repetition")
    if schema.keys() & {"enum", "pattern", "format"}:
        assert complete == 3


def test_stream_generate(tiny):
    responses = list(jvlm_mlx.stream_generate(*tiny, "Hi", schema=SCHEMA, max_tokens=200))
    check("".join(one.text for one in responses))
    assert responses[-1].finish_reason == "stop"


def test_an_answer_that_is_cut_says_so(tiny):
    result = jvlm_mlx.generate(*tiny, "Hi", schema=SCHEMA, max_tokens=3)
    assert result.finish_reason == "length"
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        json.loads(result.text)


def test_batch_generate(tiny, image):
    requests = [
        {"prompt": "Hi"},
        {"prompt": "What?", "images": image, "schema": OTHER},
        {"prompt": "What?", "schema": MALFORMED},
        {"prompt": "Hi", "schema": None, "max_tokens": 5},
    ]
    found = {
        one.index: one
        for one in jvlm_mlx.batch_generate(*tiny, requests, schema=SCHEMA, max_tokens=200)
    }
    alone = jvlm_mlx.generate(*tiny, "Hi", schema=SCHEMA, max_tokens=200)
    assert found[0].result.token_ids == alone.token_ids
    check(found[1].result.text, OTHER)
    assert "the schema cannot be followed" in found[2].error
    assert found[3].result.text == jvlm_mlx.generate(*tiny, "Hi", max_tokens=5).text


def test_a_chat_whose_answers_follow_a_schema(tiny, tmp_path):
    session = jvlm_mlx.ChatSession(*tiny, schema=SCHEMA, max_tokens=200)
    for question in ("Hi", "And this?"):
        check("".join(one.text for one in session.ask(question)))
    session.save(tmp_path / "chat")
    loaded = jvlm_mlx.ChatSession.load(tmp_path / "chat", *tiny)
    check("".join(one.text for one in loaded.ask("More?")))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"schema": MALFORMED}, "the schema cannot be followed"),
        ({"schema": "{}"}, "schema must be a mapping"),
        ({"schema": [1]}, "schema must be a mapping"),
        ({"schema": {"a": {1, 2}}}, "the schema is no JSON"),
        ({"schema": {"type": "string", "enum": ["x" * 200_000]}}, "at most"),
        ({"schema": SCHEMA, "stop_token_ids": ()}, "stop_token_ids"),
    ],
)
def test_what_cannot_be_followed_is_refused_before_any_work(tiny, options, said):
    with pytest.raises(RequestError, match=said) as refused:
        jvlm_mlx.stream_generate(*tiny, "Hi", **options)
    assert len(str(refused.value)) < 400


def test_one_tokenizer_serves_all_grammars(tiny, monkeypatch):
    import llguidance

    with_grammar(GenerationOptions(schema=SCHEMA), *tiny)
    monkeypatch.setattr(llguidance, "LLTokenizer", None)
    assert with_grammar(GenerationOptions(schema=OTHER), *tiny).grammar is not None
    assert with_grammar(GenerationOptions(), *tiny).grammar is None


# --- on the command line


@pytest.fixture
def command(golden_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    (tmp_path / "list.json").write_text("[]")
    return lambda name, *given: main([name, "--model", str(golden_folder / "tiny"), *given])


def test_generate_on_the_command_line(command, capsys):
    given = ("-p", "Hi", "--json-schema", "schema.json", "--quiet")
    assert command("generate", *given, "--max-tokens", "200") == 0
    check(capsys.readouterr().out)
    assert command("generate", *given, "--max-tokens", "3") == 1
    captured = capsys.readouterr()
    assert captured.err == (
        "error: the answer ends early (length), so it is no whole JSON; raise --max-tokens\n"
    )
    assert captured.out.startswith("{")
    for file, said in (("none.json", "has no none.json"), ("list.json", "is no JSON Schema")):
        assert command("generate", "-p", "Hi", "--json-schema", file) == 1
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_batch_on_the_command_line(command, tmp_path):
    requests = [{"prompt": "Hi"}, {"prompt": "Hi", "schema": OTHER}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in requests))
    given = ("in.jsonl", "-o", "out.jsonl", "--max-tokens", "200", "--quiet")
    assert command("batch", *given, "--json-schema", "schema.json") == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    texts = {one["row"]: one["text"] for one in rows}
    check(texts[1])
    check(texts[2], OTHER)
