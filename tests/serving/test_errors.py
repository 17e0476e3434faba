"""The table of errors, row by row, over the wire: status, object, header, nothing begun."""

import json

import pytest

from tests.serving.conftest import MODEL, check_schema, data_uri, image_uri, running, user

KEY = {"Authorization": "Bearer secret"}
HI = [user("Hi")]


def asked(**parameters):
    return {"model": MODEL, "messages": HI, **parameters}


ROWS = {
    "an invalid parameter": (asked(temperature=9), 400, "invalid_request_error", "temperature"),
    "an unknown parameter": (asked(temprature=1), 400, "invalid_request_error", "temprature"),
    "tools": (asked(tools=[{}]), 400, "invalid_request_error", "tools"),
    "no messages": ({"model": MODEL}, 400, "invalid_request_error", "messages"),
    "an image that cannot be read": (
        {"messages": [user("?", data_uri(b"no image"))]},
        400, "invalid_request_error", "messages[0].content[0].image_url"),
    "an image that cannot be fetched": (
        {"messages": [user("?", "https://example.invalid/a.png")]},
        400, "invalid_request_error", "messages[0].content[0].image_url"),
    "a schema that cannot be followed": (
        asked(response_format={"type": "json_schema", "json_schema": {
            "name": "a", "schema": {"type": "nonsense"}}}),
        400, "invalid_request_error", "response_format"),
    "another model": ({"model": "gpt", "messages": HI}, 404, "invalid_request_error", "model"),
    "too large a body": (asked(user="x" * 50_000), 413, "invalid_request_error", None),
    "too many images": (
        {"messages": [user("?", *[image_uri()] * 17)]}, 413, "invalid_request_error", "messages"),
}  # fmt: skip


@pytest.fixture(scope="module")
def guarded(tiny):
    with running(lambda _: tiny, api_keys=("secret",), max_body=40_000) as (client, service):
        service.wait()
        yield client


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("row", ROWS)
def test_what_is_refused_is_refused_before_a_stream_begins(guarded, row, stream):
    body, status, kind, param = ROWS[row]
    response, data = guarded.request(
        "POST", "/v1/chat/completions", {**body, "stream": stream}, KEY
    )
    content = json.loads(data)
    check_schema(content, "ErrorResponse")
    error = content["error"]
    assert (response.status, error["type"], error["param"]) == (status, kind, param)
    assert response.getheader("Retry-After") is None  # to try again would not help


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/models"])
def test_without_a_key(guarded, path):
    response, data = guarded.request("GET" if path.endswith("models") else "POST", path, b"{}")
    content = json.loads(data)
    check_schema(content, "ErrorResponse")
    assert (response.status, content["error"]["type"]) == (401, "authentication_error")
