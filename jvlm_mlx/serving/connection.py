"""One connection: what is no HTTP gets an error object, and whoever says nothing is let go."""

import asyncio
import json
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


def server_config(app: ASGIApp, *, quiet: bool, grace_seconds: int) -> uvicorn.Config:
    """Return how uvicorn serves the application.

    Args:
        app: from `make_app`.
        quiet: whether requests are not logged; what is logged never has a prompt in it.
        grace_seconds: for answers under way once the server is asked to stop.
    """
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        log_level="warning" if quiet else "info",
        access_log=not quiet,
        timeout_graceful_shutdown=grace_seconds,
        server_header=False,
        lifespan="off",
    )
