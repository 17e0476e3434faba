"""Which images a request may show."""

import base64
import io
import struct
import threading
import time
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from PIL import Image

from jvlm_mlx.config.image_config import ImageOptions
from jvlm_mlx.processing.image_processor import OpenedImage
from jvlm_mlx.serving.api_error import ApiError
from jvlm_mlx.serving.image_policy import MAX_DECODERS, ImagePolicy
from tests.serving.conftest import GOLDEN, data_uri, image_uri


def opened(tiny, policy, *addresses, detail="auto", max_crops=None):
    parts = [{"type": "image_url", "image_url": one, "detail": detail} for one in addresses]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "?"}]}]
    (message,) = policy.open_all(tiny[1], messages, ImageOptions(max_crops=max_crops))
    return [part["image"] for part in message["content"] if part["type"] == "image"]


def refusal(tiny, policy, *addresses):
    with pytest.raises(ApiError) as refused:
        opened(tiny, policy, *addresses)
    return refused.value


def test_images_of_a_request(tiny):
    one, other = opened(tiny, ImagePolicy(), image_uri("dot"), image_uri("shapes"))
    path = tiny[1].image_processor.open(GOLDEN / "images" / "shapes.png")
    assert (other.layout, other.digest) == (path.layout, path.digest)
    assert one.digest != other.digest
    (low,) = opened(tiny, ImagePolicy(), image_uri("shapes"), detail="low")
    assert low.layout.grid == (0, 0)
    assert low.layout.num_tiles == 1
    assert opened(tiny, ImagePolicy(), image_uri("shapes"), max_crops=2)[0].layout.num_tiles <= 3


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("https://example.org/a.png", "fetches no images"),
        ("file:///etc/passwd", "data URI"),
        ("/etc/passwd", "data URI"),
        ("etc/passwd", "data URI"),
        ("ftp://example.org/a.png", "data URI"),
        ("data:text/html;base64,AAAA", "data:image"),
        ("data:image/png,AAAA", "data:image"),
        ("data:image/png;base64,????", "damaged"),
        (data_uri(b"no image at all"), "no image"),
        (data_uri(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "image"),
        (data_uri(b"\x89PNG\r\n\x1a\n" + bytes(50)), "image"),
    ],
)
def test_what_is_refused_by_default(tiny, address, said):
    error = refusal(tiny, ImagePolicy(), image_uri(), address)
    assert (error.status, error.param) == (400, "messages[0].content[1].image_url")
    assert said in str(error)
    assert "passwd" not in str(error)


def test_hosts_inside_the_network_are_refused(tiny):
    for host in ("127.0.0.1", "localhost", "169.254.169.254", "[::1]", "10.0.0.1"):
        error = refusal(tiny, ImagePolicy(allow_urls=True), f"http://{host}:9/a.png")
        assert (error.status, "no public address" in str(error)) == (400, True)


def test_damaged_images_are_refused_before_they_are_queued(tiny):
    contents = (GOLDEN / "images" / "shapes.png").read_bytes()
    error = refusal(tiny, ImagePolicy(), data_uri(contents[:-200]))
    assert (error.status, "cannot be decoded" in str(error)) == (400, True)


def test_limits(tiny):
    error = refusal(tiny, ImagePolicy(max_images=2), *[image_uri()] * 3)
    assert (error.status, "3 images; at most 2" in str(error)) == (413, True)
    large = data_uri(bytes(3_000_000))
    assert refusal(tiny, ImagePolicy(max_bytes=2**20), large).status == 413


@pytest.mark.parametrize("size", [(5001, 5000), (16_385, 900)])
def test_images_of_too_many_pixels_are_refused_before_they_are_decoded(tiny, size, monkeypatch):
    buffer = io.BytesIO()
    Image.new("1", (1, 1)).save(buffer, "PNG")
    header = bytearray(buffer.getvalue())
    header[16:24] = struct.pack(">II", *size)
    header[29:33] = struct.pack(">I", zlib.crc32(header[12:29]))
    loaded = []
    monkeypatch.setattr(OpenedImage, "load", lambda image: loaded.append(image))
    error = refusal(tiny, ImagePolicy(), image_uri(), data_uri(bytes(header)))
    assert (error.status, error.param) == (413, "messages[0].content[1].image_url")
    assert f"{size[0]} x {size[1]}" in str(error)
    assert len(loaded) == 1  # the other one


def test_few_images_are_decoded_at_the_same_time(tiny, monkeypatch):
    lock, states = threading.Lock(), {"now": 0, "most": 0}

    def load(image):
        with lock:
            states["now"] += 1
            states["most"] = max(states["most"], states["now"])
        time.sleep(0.02)
        with lock:
            states["now"] -= 1

    monkeypatch.setattr(OpenedImage, "load", load)
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda _: opened(tiny, ImagePolicy(), image_uri()), range(24)))
    assert states["most"] == MAX_DECODERS


def test_files_of_an_allowed_folder_only(tiny, tmp_path):
    folder = tmp_path / "allowed"
    folder.mkdir()
    inside = folder / "my dot.png"
    inside.write_bytes((GOLDEN / "images" / "dot.png").read_bytes())
    outside = tmp_path / "outside.png"
    outside.write_bytes(inside.read_bytes())
    (folder / "link.png").symlink_to(outside)
    policy = ImagePolicy(folder=folder)
    address = "file://" + urllib.request.pathname2url(str(inside))
    assert len(opened(tiny, policy, address)) == 1
    refused = {
        str(refusal(tiny, policy, f"file://{path}"))
        for path in (
            outside, folder / "link.png", folder / ".." / "outside.png", folder,
            folder / "none.png",
            "/etc/passwd", f"host{inside}", f"{folder}/%2e%2e/outside.png",
        )
    }  # fmt: skip
    # One message for all: it does not tell what exists.
    assert refused == {
        "messages[0].content[0].image_url: there is no such file in the allowed folder"
    }
    small = replace(policy, max_bytes=10)
    assert refusal(tiny, small, address).status == 413


def test_errors_name_no_path(tiny, tmp_path):
    damaged = tmp_path / "secret-name.png"
    damaged.write_bytes(base64.b64decode("iVBORw0KGgo=") + bytes(100))
    error = refusal(tiny, ImagePolicy(folder=tmp_path), f"file://{damaged}")
    assert "secret-name" not in str(error)
