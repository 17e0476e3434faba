"""Who may ask, from where, and how much: everything that is decided before a request is read."""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio
from starlette.requests import ClientDisconnect, Request

from ..config.json_file import MAX_BYTES, parse_json
from ..errors import JvlmError
from .api_error import ApiError, invalid, too_large, unauthorized

MAX_BODY_SECONDS = 30.0
"""For the whole of a body, however slowly it drips."""
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})


@dataclass(frozen=True, kw_only=True)
class Guard:
    """The rules of one server."""

    api_keys: tuple[str, ...] = ()
    """Any of which a client must send; empty for none."""
    origins: tuple[str, ...] = ()
    """Web pages of other origins that may ask; none by default."""
    max_body: int = MAX_BYTES
    """Bytes of a request."""
    hosts: frozenset[str] = field(default_factory=frozenset)
    """Names under which clients may reach the server; empty for any."""

    @classmethod
    def for_address(
        cls, host: str, api_keys: tuple[str, ...], origins: tuple[str, ...], max_body: int
    ) -> "Guard":
        """Return the rules for an address.

        On a loopback address only its own names are accepted: a web page whose name was made to
        point here must not get through.

        Raises:
            JvlmError: another address than a loopback one needs a key.
        """
        if host in _LOOPBACK:
            names = _LOOPBACK
        elif not api_keys:
            raise JvlmError(
                f"--host {host} opens this server to the network: set --api-key or JVLM_API_KEY,"
                " or leave --host out"
            )
        else:
            names = frozenset()
        return cls(api_keys=api_keys, origins=origins, max_body=max_body, hosts=names)

    def check(self, headers: Mapping[str, str], *, needs_key: bool) -> str:
        """Refuse a request by its headers; return whose it is, a name for each key.

        Raises:
            ApiError: it comes from a foreign web page, for another host, or has no valid key.
        """
        host = headers.get("host", "")
        name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        if self.hosts and name not in self.hosts:
            raise ApiError(403, "this server answers to localhost only", code="host_not_allowed")
        origin = headers.get("origin")
        if origin is not None and origin not in self.origins and not _is_own(origin, host):
            raise ApiError(
                403, "pages of this origin may not use this server; allow it with --cors-origin",
                code="origin_not_allowed",
            )  # fmt: skip
        if not needs_key or not self.api_keys:
            return ""
        scheme, _, sent = headers.get("authorization", "").partition(" ")
        given = sent.strip().encode() if scheme.lower() == "bearer" else b""
        # All are compared, each in constant time, so that the time tells nothing.
        matches = [hmac.compare_digest(given, key.encode()) for key in self.api_keys]
        if not any(matches):
            raise unauthorized()
        return f"key {matches.index(True)}"

    async def read_json(self, request: Request) -> Any:
        """Return the body of a request.

        Raises:
            ApiError: it is too large, too slow, or no JSON.
        """
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise ApiError(
                415, "send the header Content-Type: application/json", code="unsupported_media_type"
            )
        declared = request.headers.get("content-length", "0")
        if declared.isascii() and declared.isdigit() and int(declared[:20]) > self.max_body:
            raise self._too_large()
        body = bytearray()
        try:
            with anyio.fail_after(MAX_BODY_SECONDS):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > self.max_body:
                        raise self._too_large()
        except TimeoutError:
            raise ApiError(408, "the request came too slowly", code="request_timeout") from None
        except ClientDisconnect:
            raise invalid("the client left before the request was complete") from None
        try:
            return parse_json(bytes(body))
        except (JvlmError, ValueError) as error:
            raise invalid(f"the body is no JSON: {error}") from None

    def _too_large(self) -> ApiError:
        return too_large(f"the request is larger than {self.max_body / 1e6:.0f} MB")


def _is_own(origin: str, host: str) -> bool:
    """Whether a page was served by this server itself."""
    return bool(host) and origin in (f"http://{host}", f"https://{host}")
