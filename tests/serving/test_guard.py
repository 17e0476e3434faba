"""Who may ask, from where, and how much."""

import socket

import pytest

from jvlm_mlx.errors import JvlmError
from jvlm_mlx.serving.api_error import ApiError
from jvlm_mlx.serving.guard import Guard
from tests.serving.conftest import check_schema, image_uri, running, user


def check(guard, *, needs_key=True, **headers):
    return guard.check({"host": "localhost:8080", **headers}, needs_key=needs_key)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.org"])
def test_the_network_needs_a_key(host):
    with pytest.raises(JvlmError, match="--api-key"):
        Guard.for_address(host, (), (), 1)
    check(
        Guard.for_address(host, ("secret",), (), 1), host="anything", authorization="Bearer secret"
    )


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example"])
def test_a_name_that_was_made_to_point_here_is_refused(host):
    guard = Guard.for_address("127.0.0.1", (), (), 1)
    with pytest.raises(ApiError, match="localhost only"):
        check(guard, host=host)
    for own in ("localhost", "localhost:1", "127.0.0.1:8080", "[::1]:8080", "[::1]"):
        check(guard, host=own)


def test_foreign_pages_are_refused():
    guard = Guard.for_address("127.0.0.1", (), ("https://chat.example",), 1)
    check(guard, origin="https://chat.example")
    check(guard, origin="http://localhost:8080")  # the page that this server serves
    for origin in ("https://evil.example", "null", "http://localhost:9999", "file://"):
        with pytest.raises(ApiError, match="--cors-origin"):
            check(guard, origin=origin)


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Bearer wrong", "Basic secret", "secret", "Bearer secretx"]
)
def test_a_key_is_compared_as_a_whole(header):
    guard = Guard.for_address("127.0.0.1", ("secret", "other"), (), 1)
    with pytest.raises(ApiError) as refused:
        check(guard, authorization=header)
    assert (refused.value.status, refused.value.kind) == (401, "authentication_error")
    owners = {check(guard, authorization=f"bearer {key}") for key in ("secret", "other")}
    assert len(owners) == 2
    assert check(guard, needs_key=False) == ""


def test_over_the_wire(tiny):
    with running(lambda _: tiny, api_keys=("secret",), max_body=2000) as (client, service):
        service.wait()
        key = {"Authorization": "Bearer secret"}
        status, body = client.post({"messages": [user("Hi")]})
        assert status == 401
        check_schema(body, "ErrorResponse")
        assert client.post({"messages": [user("Hi")], "max_tokens": 1}, **key)[0] == 200
        assert client.get("/v1/models")[0] == 401
        assert client.get("/health")[0] == 200  # for whoever starts and watches servers
        status, body = client.post({"messages": [user("x" * 3000)]}, **key)
        assert (status, body["error"]["code"]) == (413, "request_too_large")
        status, body = client.post(b"{", **key)
        assert (status, body["error"]["type"]) == (400, "invalid_request_error")
        status, body = client.post(b"messages=1", **{**key, "Content-Type": "text/plain"})
        assert status == 415
        status, body = client.post(b"[" * 500 + b"]" * 500, **key)
        assert (status, "nested" in body["error"]["message"]) == (400, True)
        for path, expected in (("/nothing", 404), ("/v1/chat/completions", 405)):
            status, data = client.get(path, **key)
            assert status == expected
            assert b'"error":{"message"' in data


def test_a_length_that_is_not_told_is_counted(tiny):
    with running(lambda _: tiny, max_body=1000) as (client, service):
        service.wait()
        with socket.create_connection(("127.0.0.1", client.port), timeout=20) as connection:
            connection.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            for _ in range(20):
                connection.sendall(b"64\r\n" + b" " * 100 + b"\r\n")
            assert b" 413 " in connection.recv(100)


def test_caches_of_one_key_do_not_speed_up_another(tiny):
    asked = {"messages": [user("What is this?", image_uri("shapes"))], "max_tokens": 1}

    def cached(client, key):
        _, body = client.post(asked, Authorization=f"Bearer {key}")
        return body["usage"]["prompt_tokens_details"]["cached_tokens"]

    with running(lambda _: tiny, api_keys=("one", "other")) as (client, service):
        service.wait()
        assert cached(client, "one") == 0
        assert cached(client, "one") > 0
        assert cached(client, "other") == 0
        assert service.scheduler.caches.features.stats().hits == 0
        assert cached(client, "other") > 0


@pytest.mark.parametrize("origins", [(), ("https://chat.example",)])
def test_answers_name_no_origin_but_those_that_are_allowed(tiny, origins):
    with running(lambda _: tiny, origins=origins) as (client, service):
        service.wait()
        for origin in ("https://chat.example", "https://evil.example"):
            response, _ = client.request("GET", "/v1/models", headers={"Origin": origin})
            allowed = origin in origins
            assert response.status == (200 if allowed else 403)
            header = response.getheader("Access-Control-Allow-Origin")
            assert header == (origin if allowed else None)
            asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            response, _ = client.request("OPTIONS", "/v1/chat/completions", headers=asked)
            assert (response.status == 200) == allowed
