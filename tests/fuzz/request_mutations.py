"""How mutated requests are made: bodies, headers, targets, chunks, connections, images.

All chance comes from the seed, so that a request can be made again.
"""

import base64
import io
import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tests.fuzz.mutators import TEXTS, as_text, mutate_bytes, mutate_json

GOLDEN = Path(__file__).parents[1] / "golden"
KEY = "fuzz-key"
MAX_BODY = 300_000
"""Bytes that the server is told to accept."""
FORMATS = ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "ICO", "JPEG2000", "PDF", "TGA")
MODES = ("RGB", "L", "P", "RGBA", "1", "CMYK", "I;16", "LA")
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@dataclass
class Sent:
    """One mutated request."""

    data: bytes
    """All that is written to the connection."""
    complete: bool = True
    """Whether an answer must come."""
    path: str = ""
    """Where it goes, if that is sure; decides by which schema its answer is checked."""
    stream: bool = False
    split: tuple[int, ...] = ()
    """Places at which the client waits for a moment."""
    half_close: bool = False
    """Whether the client says that it will send no more."""
    leave: int | None = None
    """After so many bytes of the answer, the client leaves without a word."""


def data_uri(content, kind="png"):
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()


def encode_image(chance):
    """Return an image file of any format, mode and shape."""
    width, height = chance.choice(((1, 1), (1, 400), (400, 1), (30, 20), (56, 40), (120, 90)))
    image = Image.fromarray(
        np.random.default_rng(chance.randrange(2**32)).integers(
            0, 255, (height, width, 3), np.uint8
        )
    )
    buffer = io.BytesIO()
    try:
        image.convert(chance.choice(MODES)).save(buffer, chance.choice(FORMATS))
    except (OSError, ValueError, KeyError):  # not every format has every mode
        image.save(buffer, "PNG")
    return buffer.getvalue()


def chat_body(chance, image=None):
    """Return a valid conversation with a random choice of parameters."""
    content = chance.choice(("Hi", "What is this?", [{"type": "text", "text": "Hello"}]))
    if image is not None or chance.random() < 0.4:
        uri = image or data_uri((GOLDEN / "images" / "dot.png").read_bytes())
        content = [
            {"type": "image_url", "image_url": {"url": uri, "detail": "low"}},
            {"type": "text", "text": "What is this?"},
        ]
    body = {"model": "jina-vlm", "messages": [{"role": "user", "content": content}]}
    extra = {
        "max_tokens": 3, "max_completion_tokens": 2, "temperature": 0.7, "top_p": 0.9, "seed": 3,
        "n": 2, "stop": ["x"], "logprobs": True, "presence_penalty": 0.5, "frequency_penalty": 0.5,
        "logit_bias": {"5": 1}, "top_k": 3, "min_p": 0.1, "repetition_penalty": 1.1, "stream": True,
        "max_crops": 2, "user": "me", "metadata": {"a": "b"}, "tools": [], "tool_choice": "none",
        "response_format": chance.choice((
            {"type": "json_object"}, {"type": "text"},
            {"type": "json_schema", "json_schema": {"name": "a", "schema": {
                "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}},
        )),
    }  # fmt: skip
    for name in chance.sample(sorted(extra), chance.randrange(6)):
        body[name] = extra[name]
    if "logprobs" in body and chance.random() < 0.5:
        body["top_logprobs"] = 2
    if "stream" in body and chance.random() < 0.5:
        body["stream_options"] = {"include_usage": True}
    return body


def text_body(chance):
    """Return a valid request for the continuation or the scores of a text."""
    prompt = chance.choice(("Hello", ["a", "b c"], [5, 6, 7], [[1, 2], [3]]))
    body = {"prompt": prompt, "max_tokens": 2}
    if chance.random() < 0.5:
        body |= {"echo": True, "logprobs": chance.randrange(3), "max_tokens": chance.randrange(3)}
    return body


def head(method, path, body, **headers):
    """Return a request as bytes; a header of None is left out."""
    fields = {
        "Host": "localhost", "Authorization": f"Bearer {KEY}", "Connection": "close",
        "Content-Type": "application/json", "Content-Length": str(len(body)),
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }  # fmt: skip
    lines = [f"{method} {path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + body


def dumped(body):
    return json.dumps(body).encode()


class Mutations:
    """What is sent, by kind. Each method returns a request of its kind."""

    def fuzz_body(self, chance):
        """Valid JSON, of which places are changed."""
        chat = chance.random() < 0.75
        body = mutate_json(chance, chat_body(chance) if chat else text_body(chance))
        path = CHAT if chat else TEXT
        data = as_text(chance, body)
        if len(data) > MAX_BODY * 2:
            data = data[: MAX_BODY * 2]
        stream = isinstance(body, dict) and body.get("stream") is True
        return Sent(head("POST", path, data), path=path, stream=stream)

    def fuzz_valid(self, chance):
        """Nothing is wrong with it: the answer is checked against its schema."""
        if chance.random() < 0.3:
            return Sent(head("POST", TEXT, dumped(text_body(chance))), path=TEXT)
        body = chat_body(chance)
        return Sent(head("POST", CHAT, dumped(body)), path=CHAT, stream="stream" in body)

    def fuzz_bytes(self, chance):
        """A body that is no JSON, no UTF-8, too deep or too large."""
        kind = chance.randrange(7)
        data = dumped(chat_body(chance))
        if kind == 0:
            data = mutate_bytes(chance, data)
        elif kind == 1:
            data = data[: chance.randrange(len(data))]
        elif kind == 2:
            data = bytes(chance.randrange(256) for _ in range(chance.randrange(200)))
        elif kind == 3:
            depth = chance.choice((50, 99, 500, 50_000))
            data = chance.choice((b"[", b'{"a":')) * depth
        elif kind == 4:
            data = b'{"messages": %s}' % (b"9" * chance.choice((20, 400, 5000)))
        elif kind == 5:
            data = data.replace(b'"Hi"', chance.choice((b'"\\ud800"', b'"\xff\xfe"', b'"\\u0000"')))
        else:
            data = b" " * chance.choice((MAX_BODY - 1, MAX_BODY + 1, MAX_BODY * 3))
        return Sent(head("POST", chance.choice((CHAT, TEXT)), data))

    def fuzz_headers(self, chance):
        """Headers that are missing, wrong, doubled, huge or many."""
        data = dumped({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1})
        name, value = chance.choice((
            ("Content-Type", chance.choice(("text/plain", "", "application/json;charset=utf-16",
                                            "multipart/form-data; boundary=x", "a" * 1000))),
            ("Host", chance.choice((None, "", "evil.example", "localhost:99999", "[::1", "a b"))),
            ("Authorization", chance.choice((None, "", "Bearer", "Bearer \xff\xfe", "Basic x",
                                             "Bearer " + "k" * 5000))),
            ("Origin", chance.choice(("null", "https://evil.example", "http://localhost"))),
            ("Content-Length", chance.choice(("-1", "1e3", "99999999999999999999", "0x10", "",
                                              "0", "1", str(len(data) - 1), "5, 6"))),
            ("Transfer-Encoding", chance.choice(("chunked", "gzip", "identity", "a, chunked"))),
            ("Expect", chance.choice(("100-continue", "200-ok"))),
            ("X-Long", "v" * chance.choice((1000, 20_000, 70_000))),
            ("Upgrade", "websocket"),
            ("Cookie", chance.choice(TEXTS).replace("\n", " ")),
            ("Accept-Encoding", "br;q=1, *;q=0"),
            ("Connection", chance.choice(("upgrade", "keep-alive, close", "x" * 100))),
        ))  # fmt: skip
        if chance.random() < 0.1:
            many = {f"X_{place}": "v" for place in range(chance.choice((50, 2000)))}
            return Sent(head("POST", CHAT, data, **many), complete=False)
        # What is left unsure by its length may wait for more.
        sure = name not in ("Content-Length", "Transfer-Encoding")
        return Sent(
            head("POST", CHAT, data, **{name.replace("-", "_"): value}), complete=sure,
            half_close=not sure,
        )  # fmt: skip

    def fuzz_target(self, chance):
        """Paths, methods and versions that there are not."""
        method = chance.choice(("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "BREW"))
        path = chance.choice((
            "/", "/v1", "/v1/models", "/v1/models/jina-vlm", "/v1/models/" + "x" * 3000, "/health",
            "/metrics", "/v1/models/%ff%fe", "/page/../../etc/passwd", "/page/%2e%2e%2fapp.py",
            "/v1/image-layout?width=1&height=1", "/v1/image-layout?width=²&height=1",
            "/v1/image-layout?width=999999&height=1", "//v1//models", "/v1/models/a%00b",
            "*", "http://evil.example/v1/models", "/" + "a/" * 2000, "/v1/chat/completions/",
            "/v1/models?" + "a=b&" * 1000, "/?\xff", "/%", "/%zz", "/page/page.js", "/v1/models#x",
        ))  # fmt: skip
        data = head(method, path, b"", Content_Length="0")
        if chance.random() < 0.2:
            data = data.replace(
                b"HTTP/1.1", chance.choice((b"HTTP/1.0", b"HTTP/0.9", b"HTTP/9", b""))
            )
        return Sent(data)

    def fuzz_chunks(self, chance):
        """A body in chunks: fine, damaged, huge, or without an end."""
        data = dumped(chat_body(chance))
        size = chance.choice((1, 7, 100, 5000))
        pieces = [data[start : start + size] for start in range(0, len(data), size)]
        sent = [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces]
        kind = chance.randrange(6)
        ending, complete = b"0\r\n\r\n", True
        if kind == 1:
            ending, complete = b"", False
        elif kind == 2:
            place = chance.randrange(len(sent))
            sent[place] = chance.choice((b"zz\r\n", b"-5\r\nabc\r\n", b"f" * 40 + b"\r\n", b"\r\n"))
            complete = False
        elif kind == 3:
            sent = [
                b"%x;name=%s\r\n%s\r\n" % (len(piece), b"v" * 50, piece) for piece in pieces[:50]
            ]
            sent += [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces[50:]]
        elif kind == 4:
            ending = b"0\r\nX-Trailer: " + b"t" * 100 + b"\r\n\r\n"
        elif kind == 5:
            sent = [b"fffffff\r\n" + b" " * 2000]
            ending, complete = b"", False
        head_bytes = head("POST", CHAT, b"", Content_Length=None, Transfer_Encoding="chunked")
        return Sent(
            head_bytes + b"".join(sent) + ending, complete=complete, half_close=not complete
        )

    def fuzz_slow(self, chance):
        """A client that stops for moments, within headers or body, and perhaps says no more."""
        sent = self.fuzz_valid(chance)
        count = chance.choice((1, 3, 8))
        sent.split = tuple(sorted(chance.randrange(1, len(sent.data)) for _ in range(count)))
        sent.half_close = chance.random() < 0.5
        return sent

    def fuzz_cut(self, chance):
        """A connection that ends in the middle of a request, by a close or a reset."""
        sent = chance.choice((self.fuzz_valid, self.fuzz_chunks))(chance)
        cut = chance.randrange(len(sent.data))
        return Sent(sent.data[:cut], complete=False, half_close=chance.random() < 0.5)

    def fuzz_leave(self, chance):
        """A client that leaves in the middle of its answer."""
        body = {**chat_body(chance), "max_tokens": 50, "stream": chance.random() < 0.7}
        body.pop("max_completion_tokens", None)
        return Sent(head("POST", CHAT, dumped(body)), leave=chance.choice((0, 1, 20, 200, 900)))

    def fuzz_pipeline(self, chance):
        """Several requests in one write, with garbage between or behind them."""
        body = dumped({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2})
        one = head("POST", CHAT, body, Connection="keep-alive")
        garbage = chance.choice((
            b"", b"\r\n\r\n", b"GARBAGE\r\n\r\n", bytes(chance.randrange(256) for _ in range(300)),
            b"GET / HTTP/1.1\r\n\r\n", b"POST", b"{}" * 100, b"\x16\x03\x01\x02\x00" + b"x" * 200,
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ))  # fmt: skip
        parts = [one, garbage, one] if chance.random() < 0.5 else [garbage, one, one]
        return Sent(b"".join(parts), complete=False, half_close=True)

    def fuzz_image(self, chance):
        """Images of all formats and shapes, whole and damaged, and data URIs that are none."""
        content = encode_image(chance)
        kind = chance.randrange(5)
        if kind < 2:
            content = mutate_bytes(chance, content)
        elif kind == 2:
            content = content[: chance.randrange(len(content))]
        uri = data_uri(content, chance.choice(("png", "jpeg", "x-anything", "svg+xml")))
        if kind == 3:
            uri = mutate_bytes(chance, uri.encode()).decode("latin-1")
        elif chance.random() < 0.15:
            uri = chance.choice((
                "file:///etc/passwd", "file://" + "a" * 5000, "http://127.0.0.1/x.png", "//x",
                "data:", "https://[", "http://169.254.169.254/", "data:image/png;base64,",
                "file:///dev/zero", f"file://{GOLDEN}/images/dot.png",
                f"file://{GOLDEN}/images/../cases.json", *TEXTS[:4],
            ))  # fmt: skip
        body = {**chat_body(chance, uri), "max_tokens": 1, "stream": False}
        body.pop("stream_options", None)
        body.pop("max_completion_tokens", None)
        return Sent(head("POST", CHAT, json.dumps(body).encode("utf-8", "replace")), path=CHAT)

    def run(self, seed):
        """Return the kind and the request of a seed."""
        chance = random.Random(f"request {seed}")
        kind = chance.choice(KINDS)
        return kind, getattr(self, f"fuzz_{kind}")(chance)


KINDS = tuple(sorted(name[5:] for name in dir(Mutations) if name.startswith("fuzz_")))
