"""Images from a web server of this process, which keeps to no rules."""

import http.server
import socket
import threading
import time
from types import SimpleNamespace

import pytest

from jvlm_mlx.errors import ImageError, RequestError
from jvlm_mlx.processing import download
from jvlm_mlx.processing.image_io import read_image
from jvlm_mlx.processing.sources import SourceLimits
from tests.helpers.image_files import TURNED_PNG, UPRIGHT, assert_opens, error_line

QUICK = SourceLimits(timeout=0.3, max_bytes=2**20)
SIZE = len(TURNED_PNG)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the turned image at any address, or the trouble that the address names."""

    def do_GET(self):
        trouble = getattr(self, "serve_" + self.path.strip("/").partition("?")[0], None)
        try:
            if trouble is not None:
                trouble()
            elif self.path.isascii():
                self.serve(TURNED_PNG)
        except OSError:
            pass  # the client has had enough

    def serve(self, body, *headers, status="200 OK"):
        lines = [f"HTTP/1.1 {status}", *headers, "Connection: close", "", ""]
        self.wfile.write("\r\n".join(lines).encode() + body)

    def drip(self, start, more):
        self.wfile.write(start)
        while not self.server.stopped.wait(0.02):
            self.wfile.write(more)

    def serve_missing(self):
        self.send_error(404)

    def serve_moved(self):
        self.serve(b"", "Location: /image", status="302 Found")

    def serve_loop(self):
        self.serve(b"", "Location: /loop", status="302 Found")

    def serve_ftp(self):
        self.serve(b"", "Location: ftp://127.0.0.1/image.png", status="302 Found")

    def serve_file(self):
        self.serve(b"", "Location: file:///etc/hostname", status="302 Found")

    def serve_elsewhere(self):
        self.serve(b"", "Location: http://0.0.0.0:9/secret", status="302 Found")

    def serve_text(self):
        self.serve(b"<html>no image here</html>", "Content-Type: text/html; charset=utf-8")

    def serve_typed(self):
        self.serve(b"nothing", "Content-Type: image/png")

    def serve_short(self):
        self.serve(TURNED_PNG, f"Content-Length: {SIZE + 1}")

    def serve_chunks(self):
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (SIZE, TURNED_PNG)
        self.serve(body, "Transfer-Encoding: chunked")

    def serve_half_a_chunk(self):
        self.serve(b"%x\r\n%b" % (SIZE + 9, TURNED_PNG), "Transfer-Encoding: chunked")

    def serve_huge(self):
        self.serve(b"", f"Content-Length: {10**11}")

    def serve_endless(self):
        self.serve(b"")
        while not self.server.stopped.is_set():
            self.wfile.write(bytes(2**16))

    def serve_endless_redirect(self):
        self.serve(b"", "Location: /image", status="302 Found")
        while not self.server.stopped.is_set():
            self.wfile.write(bytes(2**16))

    def serve_silent(self):
        self.server.stopped.wait(5)

    def serve_slow_status(self):
        self.drip(b"HTTP/1.1 20", b"0")

    def serve_slow_headers(self):
        self.drip(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n")

    def serve_slow_body(self):
        self.drip(b"HTTP/1.1 200 OK\r\n\r\n", b"x")

    def serve_slow_chunks(self):
        self.drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n")

    def serve_slow_chunk_size(self):
        self.drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0")

    def serve_continue(self):
        self.drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n")

    def serve_slow_redirects(self):
        time.sleep(0.1)
        self.serve(b"", f"Location: /slow_redirects?{time.monotonic()}", status="302 Found")

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.stopped = threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.stopped.set()
    server.shutdown()
    thread.join()
    server.server_close()


def error_of(url, limits, **keywords):
    with pytest.raises(ImageError) as caught:
        read_image(url, limits, **keywords)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 300
    return line


@pytest.mark.parametrize(
    "path",
    ["/image", "/moved", "/chunks", "/an image", "/bücher/图.png?größe=1", "/a%20b?c=d%26"],
)
def test_images_are_fetched(server, path):
    assert_opens(server + path, UPRIGHT)
    assert_opens(server.replace("http", "HTTP") + path, UPRIGHT)


@pytest.mark.parametrize(
    ("path", "end"),
    [
        ("/missing", "cannot be downloaded: HTTP 404 Not Found"),
        ("/loop", "cannot be downloaded: it redirects in a loop"),
        ("/ftp", "redirects to 'ftp://127.0.0.1/image.png', which is not on the web"),
        ("/short", f"ended after {SIZE} of {SIZE + 1} bytes"),
        ("/half_a_chunk", "cannot be downloaded: its server ended it early"),
        ("/huge", "is larger than 1 MiB"),
        ("/endless", "is larger than 1 MiB"),
        ("/endless_redirect", "is larger than 1 MiB"),
        ("/text", "ICO and JPEG 2000 (its server calls it text/html)"),
        ("/typed", "is no image of a format that is opened: JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF,"
                   " HEIC, PPM, ICO and JPEG 2000"),
    ],
)  # fmt: skip
def test_answers_that_are_no_images(server, path, end):
    limits = SourceLimits(timeout=10, max_bytes=2**20)
    started = time.monotonic()
    assert error_of(server + path, limits).endswith(end)
    assert time.monotonic() - started < 5


def test_files_are_not_redirected_to(server):
    assert "HTTP 302" in error_line(server + "/file")


@pytest.mark.parametrize(
    "path",
    [
        "/silent", "/slow_status", "/slow_headers", "/slow_body", "/slow_chunks",
        "/slow_chunk_size", "/continue", "/slow_redirects",
    ],
)  # fmt: skip
def test_one_deadline_holds_for_everything(server, path):
    started = time.monotonic()
    assert error_of(server + path, QUICK).endswith("took longer than 0.3 seconds to download")
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("path", ["/silent", "/slow_headers", "/slow_body"])
def test_a_download_can_be_canceled(server, path):
    cancel = threading.Event()
    timer = threading.Timer(0.1, cancel.set)
    timer.start()
    started = time.monotonic()
    with pytest.raises(RequestError, match="canceled"):
        read_image(server + path, cancel=cancel)
    assert time.monotonic() - started < 5
    timer.join()


def test_hosts_that_cannot_be_reached():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        assert "Connection refused" in error_line(f"http://127.0.0.1:{port}/a.png")
    for url in ("http://", "http://[", "http://a b/", "https://exämple.invalid:x/"):
        assert "cannot be downloaded" in error_line(url)


def test_connections_are_closed(server, monkeypatch):
    opened = []
    create = socket.socket

    def note(*arguments):
        opened.append(create(*arguments))
        return opened[-1]

    module = SimpleNamespace(**{**vars(socket), "socket": note})
    monkeypatch.setattr(download, "socket", module)
    error_of(server + "/slow_body", QUICK)
    read_image(server + "/moved")
    assert len(opened) == 3
    assert all(one.fileno() == -1 for one in opened)


# Addresses that are not public


def test_private_hosts_can_be_refused(server, monkeypatch):
    limits = SourceLimits(private_addresses=False)
    assert error_of(server + "/image", limits).endswith(
        "is at 127.0.0.1, which is no public address; such are refused here"
    )
    assert "is at localhost" in error_of(server.replace("127.0.0.1", "localhost"), limits)
    # Every hop is checked: here the first is taken for a public one.
    is_public = download._is_public
    monkeypatch.setattr(
        download, "_is_public", lambda address: address == "127.0.0.1" or is_public(address)
    )
    assert read_image(server + "/moved", limits).size == (9, 14)
    assert "is at 0.0.0.0" in error_of(server + "/elsewhere", limits)


def test_a_name_with_one_private_address_is_refused(monkeypatch):
    """Nothing is sent: the name is only looked up, in a table of this test."""

    def look_up(host, port, **keywords):
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in ("169.254.169.254", "8.8.8.8")
        ]

    monkeypatch.setattr(download.socket, "getaddrinfo", look_up)
    limits = SourceLimits(private_addresses=False)
    assert "is at images.example, which is no" in error_of("http://images.example/a.png", limits)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("64:ff9b::808:808", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_public_addresses(address, expected):
    assert download._is_public(address) is expected
