"""Connections that speak no HTTP, or say nothing: an error object, and no place held for good."""

import contextlib
import http.client
import json
import socket

import pytest

from jvlm_mlx.serving import connection
from tests.serving.conftest import check_schema, running, user

ASKED = json.dumps({"messages": [user("Hi")], "max_tokens": 1}).encode()
GOOD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(ASKED), ASKED)
)


def exchange(port, *sent):
    """Send one text after the other; return what comes until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as wire:
        received = b""
        for one in sent:
            wire.sendall(one)
        # Closed before all of it was read, which systems report as a reset.
        with contextlib.suppress(ConnectionResetError):
            while data := wire.recv(65536):
                received += data
        return received


@pytest.mark.parametrize(
    "sent",
    [
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n" * 5,  # TLS
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/7\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no host
        GOOD.replace(b"Content-Length: ", b"Content-Length: -"),
        GOOD.replace(b"Content-Length: ", b"Transfer-Encoding: chunked\r\nX-Was: ") + b"zz\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"v" * 200_000,
    ],
)
def test_what_is_no_http_gets_an_error_object(client, sent):
    head, _, body = exchange(client.port, sent).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/json" in head.lower()
    check_schema(json.loads(body), "ErrorResponse")
    assert client.chat([user("Hi")], max_tokens=1)[0] == 200


def test_garbage_behind_a_request_ends_the_connection_alone(client):
    received = exchange(client.port, GOOD + b"\x00\x01\x02 garbage\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 400 " in received
    assert client.chat([user("Hi")], max_tokens=1)[0] == 200


@pytest.mark.parametrize("sent", [b"", b"POST /v1/chat", b"GET / HTTP/1.1\r\nHost: loc"])
def test_a_connection_without_a_request_is_closed(tiny, monkeypatch, sent):
    monkeypatch.setattr(connection, "MAX_HEADER_SECONDS", 0.2)
    with running(lambda _: tiny) as (client, service):
        service.wait()
        assert exchange(client.port, sent) == b""


def test_a_connection_without_another_request_is_closed(tiny, monkeypatch):
    monkeypatch.setattr(connection, "MAX_HEADER_SECONDS", 0.2)
    with running(lambda _: tiny) as (client, service):
        service.wait()
        with socket.create_connection(("127.0.0.1", client.port), timeout=20) as wire:
            wire.sendall(GOOD)
            response = http.client.HTTPResponse(wire)
            response.begin()
            assert response.status == 200
            response.read()
            wire.sendall(b"POST /v1/chat")
            assert wire.recv(100) == b""


def test_an_answer_that_takes_long_is_not_cut(tiny, monkeypatch):
    monkeypatch.setattr(connection, "MAX_HEADER_SECONDS", 0.05)
    with running(lambda _: tiny) as (client, service):
        service.wait()
        status, body = client.chat([user("Hi")], max_tokens=300)
        assert (status, body["usage"]["completion_tokens"] > 100) == (200, True)
