"""Fetches an image from the web, in bounded time and memory.

Python's own client does the talking. Its timeout starts anew with every packet, so its socket is
given a reader that knows one deadline for everything: names, redirects, headers, chunks.
"""

import http.client
import io
import ipaddress
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from ..config.json_file import quoted
from ..errors import ImageError, RequestError
from ..files import reason
from ..version import __version__

MAX_REDIRECT_BYTES = 2**16
"""Read of the body of a redirect that says how long it is."""
SCHEMES = ("http", "https")
_POLL = 0.1
"""Seconds between two looks at the flag that cancels."""
_HEADER_BYTES = 2**20
"""Room for headers and redirects beside the file itself."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def download(
    url: str,
    name: str,
    *,
    timeout: float,
    max_bytes: int,
    private_addresses: bool,
    cancel: threading.Event | None = None,
) -> tuple[bytes, str]:
    """Return what an http or https URL holds, and what its server calls that.

    Args:
        url: redirects from it are followed to http and https alone.
        name: of the URL, for messages.
        timeout: seconds for all of it.
        max_bytes: largest file.
        private_addresses: whether hosts may have addresses that are not public. If not, each is
            checked before it is connected to, and no proxy is used.
        cancel: ends it when it is set.

    Raises:
        ImageError: it cannot be reached, answers with an error, is too large or too slow, or
            ends early.
        RequestError: `cancel` is set.
    """
    transfer = _Transfer(name, timeout, max_bytes, private_addresses, cancel)
    try:
        request = urllib.request.Request(
            _escaped(url), headers={"User-Agent": f"jvlm-mlx/{__version__}"}
        )
        with _opener(transfer, name).open(request, timeout=timeout) as response:
            length = response.headers.get("Content-Length", "")
            declared = int(length) if length.isdecimal() and len(length) < 20 else None
            if declared is not None and declared > max_bytes:
                raise transfer.too_large()
            data = bytearray()
            while chunk := response.read1(2**20):
                data += chunk
                if len(data) > max_bytes:
                    raise transfer.too_large()
            if declared is not None and len(data) != declared:
                raise ImageError(f"{name} ended after {len(data)} of {declared} bytes")
            return bytes(data), response.headers.get_content_type()
    except urllib.error.HTTPError as error:
        error.close()
        if str(error.reason).startswith(urllib.request.HTTPRedirectHandler.inf_msg):
            raise ImageError(f"{name} cannot be downloaded: it redirects in a loop") from None
        said = " ".join(str(error.reason).split())[:80]
        raise ImageError(f"{name} cannot be downloaded: HTTP {error.code} {said}") from None
    except urllib.error.URLError as error:
        cause = error.reason if isinstance(error.reason, BaseException) else error
        raise ImageError(f"{name} cannot be downloaded: {reason(cause)}") from error
    except http.client.IncompleteRead as error:
        raise ImageError(f"{name} cannot be downloaded: its server ended it early") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ImageError(f"{name} cannot be downloaded: {reason(error)}") from error
    finally:
        transfer.close()


class _Transfer:
    """What all connections of one download have in common."""

    def __init__(
        self,
        name: str,
        timeout: float,
        max_bytes: int,
        private_addresses: bool,
        cancel: threading.Event | None,
    ) -> None:
        self._name = name
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        self._max_bytes = max_bytes
        self._bytes_left = max_bytes + _HEADER_BYTES
        self.private_addresses = private_addresses
        self._cancel = cancel
        self._sockets: list[Any] = []

    def remaining(self) -> float:
        """Return the seconds that are left.

        Raises:
            ImageError: none are.
            RequestError: the download is canceled.
        """
        if self._cancel is not None and self._cancel.is_set():
            raise RequestError("the request was canceled while an image was downloaded")
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise ImageError(f"{self._name} took longer than {self._timeout:g} seconds to download")
        return left

    def count(self, received: int) -> None:
        """Count bytes, headers and redirects included.

        Raises:
            ImageError: they are more than allowed.
        """
        self._bytes_left -= received
        if self._bytes_left < 0:
            raise self.too_large()

    def too_large(self) -> ImageError:
        """Return the error of a file that is."""
        return ImageError(f"{self._name} is larger than {self._max_bytes / 2**20:g} MiB")

    def keep(self, connection: Any) -> None:
        """Record a socket that `close` closes."""
        self._sockets.append(connection)

    def close(self) -> None:
        """Close all sockets."""
        for connection in self._sockets:
            connection.close()

    def connect(self, address: tuple[str, int], *_arguments: Any) -> socket.socket:
        """Connect to a host, as `socket.create_connection`, if its address may be used.

        What has been checked is connected to, so a name cannot change its meaning in between.
        """
        host, port = address
        failure: OSError = OSError("no address found")
        for family, kind, protocol, _name, target in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        ):
            if not (self.private_addresses or _is_public(str(target[0]))):
                raise ImageError(
                    f"{self._name} is at {host}, which is no public address; such are refused here"
                )
            connection = socket.socket(family, kind, protocol)
            self.keep(connection)
            try:
                connection.settimeout(self.remaining())
                connection.connect(target)
                return connection
            except OSError as error:
                self.remaining()  # or say that there is no time left
                failure = error
        raise failure


class _Reader(io.RawIOBase):
    """Reads a socket until the deadline of a transfer."""

    def __init__(self, connection: Any, transfer: _Transfer) -> None:
        super().__init__()
        self._connection = connection
        self._transfer = transfer

    def readable(self) -> bool:
        """Return that it is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with what has arrived."""
        while True:
            self._connection.settimeout(min(self._transfer.remaining(), _POLL))
            try:
                received: int = self._connection.recv_into(buffer)
            except TimeoutError:
                continue
            self._transfer.count(received)
            return received


class _Socket:
    """What Python's client needs of a socket, with a reader that keeps the deadline."""

    def __init__(self, connection: socket.socket, transfer: _Transfer) -> None:
        self._connection = connection
        self._transfer = transfer
        transfer.keep(connection)

    def makefile(self, *_: Any) -> io.BufferedReader:
        """Return a reader."""
        return io.BufferedReader(_Reader(self._connection, self._transfer))

    def sendall(self, data: Any) -> None:
        """Send all data."""
        self._connection.settimeout(self._transfer.remaining())
        self._connection.sendall(data)

    def close(self) -> None:
        """Leave the socket open: the response still reads from it."""


def _connection(base: type[http.client.HTTPConnection], transfer: _Transfer) -> Any:
    """Return a class of connections that keep the deadline of a transfer."""

    class Connection(base):  # type: ignore[valid-type, misc]
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            self._create_connection = transfer.connect

        def connect(self) -> None:
            self.timeout = transfer.remaining()
            super().connect()
            self.sock: Any = _Socket(self.sock, transfer)

    return Connection


class _Redirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, name: str) -> None:
        self._name = name

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        """Follow a redirect; of its body, no more is read than anybody would write."""
        if fp.length is not None:
            fp.length = min(fp.length, MAX_REDIRECT_BYTES)
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """Follow to http and https alone."""
        if urllib.parse.urlsplit(newurl).scheme not in SCHEMES:
            raise ImageError(f"{self._name} redirects to {quoted(newurl)}, which is not on the web")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Http(urllib.request.HTTPHandler):
    def __init__(self, transfer: _Transfer) -> None:
        super().__init__()
        self._transfer = transfer

    def http_open(self, req: urllib.request.Request) -> Any:
        """Open an http URL."""
        return self.do_open(_connection(http.client.HTTPConnection, self._transfer), req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, transfer: _Transfer) -> None:
        super().__init__()
        self._transfer = transfer

    def https_open(self, req: urllib.request.Request) -> Any:
        """Open an https URL."""
        return self.do_open(
            _connection(http.client.HTTPSConnection, self._transfer),
            req,
            context=ssl.create_default_context(),
        )


def _opener(transfer: _Transfer, name: str) -> urllib.request.OpenerDirector:
    """Return what opens http and https alone."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(None if transfer.private_addresses else {}),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(name),
        _Http(transfer),
        _Https(transfer),
    ):
        opener.add_handler(handler)
    return opener


def _is_public(address: str) -> bool:
    """Return whether an IP address, or the IPv4 address inside it, is one of the internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) % 2**32)
        if inner is not None:
            return _is_public(str(inner))
    return ip.is_global and not ip.is_multicast


def _escaped(url: str) -> str:
    """Escape spaces and characters beyond ASCII in a URL, as browsers do."""
    parts = urllib.parse.urlsplit(url)
    safe = "%/:=&?~+!$,;'@()*[]"
    return parts._replace(
        path=urllib.parse.quote(parts.path, safe), query=urllib.parse.quote(parts.query, safe)
    ).geturl()
