"""Published clients against the server."""

import pytest

import jvlm_mlx
from tests.serving.conftest import MODEL, image_uri, user

openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def api(served):
    client, _ = served
    # Strict: answers that do not fit the client's own types are errors.
    return openai.OpenAI(
        base_url=f"http://localhost:{client.port}/v1", api_key="any", max_retries=0,
        _strict_response_validation=True,
    )  # fmt: skip


def test_openai(api, tiny, golden_folder):
    expected = jvlm_mlx.generate(
        *tiny, "What is this?", str(golden_folder / "images" / "dot.png"), max_tokens=24
    )
    messages = [user("What is this?", image_uri())]
    assert [model.id for model in api.models.list()] == [MODEL]
    assert api.models.retrieve(MODEL).owned_by == "jvlm-mlx"
    whole = api.chat.completions.create(model=MODEL, messages=messages, logprobs=True)
    assert whole.choices[0].message.content == expected.text
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 24
    stream = api.chat.completions.create(
        model=MODEL, messages=messages, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(one.choices[0].delta.content or "" for one in chunks[:-1]) == expected.text
    assert chunks[-1].usage.completion_tokens == 24
    text = api.completions.create(model=MODEL, prompt="Hello", max_tokens=3, logprobs=1, echo=True)
    assert text.choices[0].text.startswith("Hello")


def test_openai_structured(api):
    pytest.importorskip("llguidance")
    import pydantic

    class Answer(pydantic.BaseModel):
        number: int = pydantic.Field(ge=0, le=99)
        is_red: bool

    parsed = api.chat.completions.parse(
        model=MODEL, messages=[user("What is this?", image_uri())], response_format=Answer,
        max_tokens=100,
    )  # fmt: skip
    assert isinstance(parsed.choices[0].message.parsed, Answer)


@pytest.mark.parametrize(
    ("parameters", "kind"),
    [
        ({"model": "other"}, "NotFoundError"),
        ({"temperature": 9}, "BadRequestError"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "BadRequestError"),
    ],
)
def test_openai_errors(api, parameters, kind):
    with pytest.raises(getattr(openai, kind)) as refused:
        api.chat.completions.create(**{"model": MODEL, "messages": [user("Hi")], **parameters})
    assert refused.value.body["message"]
