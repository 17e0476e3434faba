"""A server in a thread of the test process, on a free port of the loopback address."""

import base64
import contextlib
import http.client
import json
import threading
import time
from pathlib import Path

import jsonschema
import pytest

pytest.importorskip("starlette")
from jvlm_mlx.serving.app import make_app
from jvlm_mlx.serving.connection import Server
from jvlm_mlx.serving.guard import Guard
from jvlm_mlx.serving.image_policy import ImagePolicy
from jvlm_mlx.serving.service import Service, ServiceOptions

GOLDEN = Path(__file__).parents[1] / "golden"
SCHEMAS = json.loads((GOLDEN / "openai" / "chat-schemas.json").read_text())
MODEL = "jina-vlm"


def data_uri(content, kind="png"):
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()


def image_uri(name="dot"):
    return data_uri((GOLDEN / "images" / f"{name}.png").read_bytes())


def user(text, *uris):
    parts = [{"type": "image_url", "image_url": {"url": uri}} for uri in uris]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def check_schema(content, name):
    """Hold an answer against the published schema of its kind."""
    jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{name}", **SCHEMAS}).validate(
        content
    )


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class OpenStream:
    """An answer that is still coming."""

    def __init__(self, connection, body):
        self._connection = connection
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        self.response = connection.getresponse()

    def rest(self):
        """Return what is left of its events, and close it."""
        text = self.response.read().decode()
        self.close()
        return [one for one in text.split("\n\n") if one and one[0] != ":"]

    def close(self):
        """Leave it, whatever is still coming."""
        self.response.close()
        self._connection.close()


class Client:
    """Speaks HTTP with nothing between the test and the socket."""

    def __init__(self, port):
        self.port = port

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def request(self, method, path, body=None, headers=None):
        connection = self.connect()
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        head = {"Content-Type": "application/json"} if content is not None else {}
        connection.request(method, path, content, {**head, **(headers or {})})
        response = connection.getresponse()
        data = response.read()
        connection.close()
        return response, data

    def get(self, path, **headers):
        response, data = self.request("GET", path, headers=headers)
        return response.status, data

    def post(self, body, path="/v1/chat/completions", **headers):
        """Return status and JSON."""
        response, data = self.request("POST", path, body, headers)
        return response.status, json.loads(data)

    def open_stream(self, messages, **parameters):
        """Return a stream of which only the beginning has come."""
        return OpenStream(
            self.connect(), {"model": MODEL, "messages": messages, "stream": True, **parameters}
        )

    def chat(self, messages, **parameters):
        return self.post({"model": MODEL, "messages": messages, **parameters})

    def stream(self, messages, **parameters):
        """Return the events of a stream, in order; every one of them is a valid chunk."""
        body = {"model": MODEL, "messages": messages, "stream": True, **parameters}
        response, data = self.request("POST", "/v1/chat/completions", body)
        assert response.status == 200, data
        assert response.getheader("content-type").startswith("text/event-stream")
        *events, done, rest = data.decode().split("\n\n")
        assert (done, rest) == ("data: [DONE]", "")
        chunks = [json.loads(one.removeprefix("data: ")) for one in events if one[0] != ":"]
        for chunk in chunks:
            check_schema(chunk, "CreateChatCompletionStreamResponse")
        return chunks


@contextlib.contextmanager
def running(
    load,
    *,
    api_keys=(),
    origins=(),
    max_body=20_000_000,
    policy=None,
    grace_seconds=10,
    defaults=None,
    **options,
):
    """Serve what `load` returns; yield a client and the service."""
    service = Service(
        ServiceOptions(
            served_name=MODEL,
            defaults={"max_tokens": 24, **(defaults or {})},
            policy=policy or ImagePolicy(),
            cache_bytes=50_000_000,
            **{"max_concurrent": 4, "max_queue": 16, "max_memory": None, **options},
        ),
        load,
    )
    guard = Guard.for_address("127.0.0.1", api_keys, origins, max_body)
    server = Server(
        make_app(service, guard), quiet=True, stop=lambda: service.stop(grace_seconds),
        grace_seconds=grace_seconds,
    )  # fmt: skip
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    service.start()
    wait_until(lambda: server.started and server.servers)
    client = Client(server.servers[0].sockets[0].getsockname()[1])
    try:
        client.stop = lambda: setattr(server, "should_exit", True)
        yield client, service
    finally:
        server.should_exit = True
        thread.join(20)
        service.wait()
        service.stop(grace_seconds)  # it was loading when the server stopped
        service.wait_until_stopped()


@pytest.fixture(scope="module")
def served(tiny):
    """A client of a server with the small model, ready."""
    with running(lambda _: tiny) as (client, service):
        service.wait()
        yield client, service


@pytest.fixture
def client(served):
    return served[0]
