"""The announcement's examples for curl: an image's address, an image inside, text, a stream."""

import http.server
import json
import shutil
import subprocess
import threading

import pytest

import jvlm_mlx
from jvlm_mlx.processing import download
from jvlm_mlx.serving.image_policy import ImagePolicy
from tests.serving.conftest import GOLDEN, MODEL, check_schema, image_uri, running

IMAGE = GOLDEN / "images" / "dot.png"
QUESTION = "Describe this image"

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


@pytest.fixture(scope="module")
def address():
    """The web address of an image, on this machine."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(IMAGE.stat().st_size))
            self.end_headers()
            self.wfile.write(IMAGE.read_bytes())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/dot.png"
        server.shutdown()


@pytest.fixture(scope="module")
def port(tiny):
    policy = ImagePolicy(allow_urls=True)
    with running(lambda _: tiny, api_keys=("KEY",), policy=policy) as (client, service):
        service.wait()
        yield client.port


def curl(port, body):
    return subprocess.run(
        ["curl", "-sN", f"http://localhost:{port}/v1/chat/completions",
         "-H", "Content-Type: application/json", "-H", "Authorization: Bearer KEY",
         "-d", "@-"],
        input=json.dumps(body), capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


def asked(text, *addresses, **parameters):
    content = [{"type": "text", "text": text}]
    content += [{"type": "image_url", "image_url": {"url": one}} for one in addresses]
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], **parameters}


def expected(tiny, text, *images):
    content = [{"type": "text", "text": text}, *[{"type": "image"} for _ in images]]
    messages = [{"role": "user", "content": content}]
    return jvlm_mlx.generate(*tiny, messages, list(images), max_tokens=24).text


def test_the_address_of_an_image(port, tiny, address, monkeypatch):
    refused = json.loads(curl(port, asked(QUESTION, address)))
    check_schema(refused, "ErrorResponse")
    assert "no public address" in refused["error"]["message"]
    monkeypatch.setattr(download, "_is_public", lambda _: True)
    body = json.loads(curl(port, asked(QUESTION, address)))
    check_schema(body, "CreateChatCompletionResponse")
    assert body["choices"][0]["message"]["content"] == expected(tiny, QUESTION, IMAGE)


def test_an_image_inside(port, tiny):
    body = json.loads(curl(port, asked(QUESTION, image_uri("dot"))))
    check_schema(body, "CreateChatCompletionResponse")
    assert body["choices"][0]["message"]["content"] == expected(tiny, QUESTION, IMAGE)


def test_text_alone(port, tiny):
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    body = json.loads(curl(port, {"model": MODEL, "messages": messages}))
    check_schema(body, "CreateChatCompletionResponse")
    answer = jvlm_mlx.generate(*tiny, "What is the capital of France?", max_tokens=24).text
    assert body["choices"][0]["message"]["content"] == answer


def test_a_stream(port, tiny):
    *events, done, rest = curl(port, asked("Tell me a story", stream=True)).split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    chunks = [json.loads(one.removeprefix("data: ")) for one in events]
    for chunk in chunks:
        check_schema(chunk, "CreateChatCompletionStreamResponse")
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == expected(tiny, "Tell me a story")
