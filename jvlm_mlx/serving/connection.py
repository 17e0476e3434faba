"""uvicorn as it serves the application: its connections, and how it stops.

What is no HTTP gets an error object, and a connection that says nothing is closed.
"""

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from .api_error import invalid

MAX_HEADER_SECONDS = 30.0
"""For the headers of a request, however slowly they drip. A body has as long again."""


class Connection(H11Protocol):
    """uvicorn's connection, with a limit of time and answers that clients can read."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take what came; the clock runs as long as headers are incomplete."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP with an error object, unless an answer is under way."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(invalid(msg).body).encode()
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            events: tuple[Any, ...] = (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=body),
                h11.EndOfMessage(),
            )
            for event in events:
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop()
        elif self._timer is None:
            self._timer = self.loop.call_later(MAX_HEADER_SECONDS, self.transport.close)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Server(uvicorn.Server):
    """Serves the application until the process is asked to stop.

    Args:
        app: from `make_app`.
        quiet: whether requests are not logged; what is logged never has a prompt in it.
        stop: called once, when no more connections are accepted; lets answers under way finish or
            end within `grace_seconds`, and does not wait for them.
        grace_seconds: after twice as long, connections that are still open are cut.
        port: to listen on, unless sockets are given to `run`.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        quiet: bool,
        stop: Callable[[], None],
        grace_seconds: int,
        port: int = 0,
    ) -> None:
        super().__init__(_config(app, quiet, grace_seconds, port))
        self._stop = stop

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, and wait for connections with answers under way."""
        self._stop()
        await super().shutdown(sockets)


def _config(app: ASGIApp, quiet: bool, grace_seconds: int, port: int) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        log_level="warning" if quiet else "info",
        access_log=not quiet,
        timeout_graceful_shutdown=2 * grace_seconds + 1,
        port=port,
        server_header=False,
        lifespan="off",
    )
