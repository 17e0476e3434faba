"""The routes: chat completions, models, health, metrics, and the page."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread
import mlx.core as mx
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.responses import StreamingResponse as Stream
from starlette.routing import BaseRoute, Route

from ..errors import JvlmError
from ..generation.response import GenerationResponse
from .api_error import ApiError, failed, invalid
from .chat_request import ChatRequest
from .chat_response import DONE, KEEP_ALIVE, Completion, TokenLogprob, event
from .guard import Guard
from .metrics import as_text
from .scheduler import Scheduler
from .service import LOADING_SECONDS, Choice, Service, cancel
from .text_completion import TextRequest
from .text_completion import choice as text_choice
from .text_completion import whole as whole_text

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 10.0
"""Between two comments of a stream in which nothing else happens; it also shows who has left."""
POLL_SECONDS = 0.5
"""Between two looks at whether the client of an answer without a stream is still there, and the
threads that make the answer."""
PROBE_SECONDS = 20.0
"""After which a request that checks the server's health looks at what others have got."""
PAGE = Path(__file__).parent / "page"
_SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

Handler = Callable[[Request], Awaitable[Response]]


def make_app(service: Service, guard: Guard) -> Starlette:
    """Return the application. The service may still be loading its model."""
    routes = Routes(service, guard)
    api: list[BaseRoute] = []
    for prefix in ("/v1", ""):
        api += [
            Route(f"{prefix}/chat/completions", routes.guarded(routes.chat), methods=["POST"]),
            Route(f"{prefix}/completions", routes.guarded(routes.complete), methods=["POST"]),
            Route(f"{prefix}/models", routes.guarded(routes.models), methods=["GET"]),
            Route(f"{prefix}/models/{{name:path}}", routes.guarded(routes.model), methods=["GET"]),
            Route(f"{prefix}/image-layout", routes.guarded(routes.image_layout), methods=["GET"]),
            Route(f"{prefix}/health", routes.guarded(routes.health, key=False), methods=["GET"]),
            Route(f"{prefix}/health_generate", routes.guarded(routes.probe), methods=["GET"]),
        ]
    api += [
        Route("/metrics", routes.guarded(routes.metrics), methods=["GET"]),
        Route("/", routes.guarded(routes.page, key=False), methods=["GET"]),
        Route("/page/{name}", routes.guarded(routes.page, key=False), methods=["GET"]),
    ]
    middleware = []
    if guard.origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(guard.origins),
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "Content-Type"],
            )
        )
    return Starlette(
        routes=api,
        middleware=middleware,
        exception_handlers={HTTPException: _http_error, Exception: _server_error},
    )


class Routes:
    """The handlers of one server."""

    def __init__(self, service: Service, guard: Guard) -> None:
        self._service = service
        self._guard = guard
        self._created = int(time.time())

    def guarded(self, handler: Handler, *, key: bool = True) -> Handler:
        """Return a handler behind the guard, whose errors are answers."""

        async def handle(request: Request) -> Response:
            try:
                request.state.owner = self._guard.check(request.headers, needs_key=key)
                return await handler(request)
            except ApiError as error:
                return _error(error)

        return handle

    async def chat(self, request: Request) -> Response:
        """Answer a conversation, whole or as a stream."""
        self._service.ready()
        asked = ChatRequest.read(await self._guard.read_json(request))
        self._service.check_model(asked.model)
        loop = asyncio.get_running_loop()
        prepare = partial(self._service.prepare, asked, loop, request.state.owner)
        choices = await anyio.to_thread.run_sync(prepare)
        scheduler, _ = self._service.ready()
        # Whatever can be refused is refused before a stream begins.
        scheduler.submit([choice.job for choice in choices])
        completion = Completion(self._service.options.served_name, asked.include_usage)
        if asked.stream:
            return Stream(
                self._stream(completion, choices, asked.top_logprobs is not None),
                media_type="text/event-stream",
                headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
            )
        return await self._whole(request, completion, choices, asked.top_logprobs is not None)

    async def _whole(
        self,
        request: Request,
        completion: Completion,
        choices: Sequence[Choice],
        with_logprobs: bool,
    ) -> Response:
        scheduler, _ = self._service.ready()
        answered, counts = [], []
        try:
            for choice in choices:
                texts: list[str] = []
                logprobs: list[TokenLogprob] = []
                last = None
                while last is None or last.finish_reason is None:
                    last = await _next_or_left(choice, request, scheduler)
                    texts.append(last.text)
                    logprobs += self._service.logprobs(last) if with_logprobs else []
                counts.append(last)
                answered.append(
                    completion.choice(
                        choice.index, "".join(texts), last.finish_reason or "stop",
                        logprobs if with_logprobs else None,
                    )
                )  # fmt: skip
        finally:
            cancel(scheduler, choices)
        return JSONResponse(completion.whole(answered, counts))

    async def complete(self, request: Request) -> Response:
        """Continue plain texts, or score them."""
        self._service.ready()
        asked = TextRequest.read(await self._guard.read_json(request))
        self._service.check_model(asked.model)
        loop = asyncio.get_running_loop()
        prepare = partial(self._service.prepare_text, asked, loop, request.state.owner)
        prompts, scores, choices = await anyio.to_thread.run_sync(prepare)
        scheduler, processor = self._service.ready()
        responses: list[list[GenerationResponse]] = [[] for _ in prompts]
        scheduler.submit([choice.job for choice in choices])
        try:
            for choice in choices:
                generated = responses[choice.index]
                while not generated or generated[-1].finish_reason is None:
                    generated.append(await _next_or_left(choice, request, scheduler))
        finally:
            cancel(scheduler, choices)
        answered = [
            text_choice(processor, index, asked, *parts)
            for index, parts in enumerate(zip(prompts, scores, responses, strict=True))
        ]
        return JSONResponse(
            whole_text(self._service.options.served_name, answered, prompts, responses)
        )

    async def _stream(
        self, completion: Completion, choices: Sequence[Choice], with_logprobs: bool
    ) -> AsyncIterator[str]:
        scheduler, _ = self._service.ready()
        merged: asyncio.Queue[tuple[Choice, GenerationResponse | ApiError]] = asyncio.Queue()
        readers = [asyncio.create_task(_forward(choice, merged)) for choice in choices]
        try:
            for choice in choices:
                yield event(completion.first(choice.index))
            ended: dict[int, GenerationResponse] = {}
            while len(ended) < len(choices):
                try:
                    choice, response = await asyncio.wait_for(merged.get(), KEEP_ALIVE_SECONDS)
                except asyncio.TimeoutError:
                    if scheduler.is_alive:
                        yield KEEP_ALIVE
                        continue
                    response = failed()
                if isinstance(response, ApiError):
                    # The status has been sent; all that can be done is to say so and end.
                    yield event(response.body)
                    return
                logprobs = self._service.logprobs(response) if with_logprobs else None
                if response.text or logprobs:
                    yield event(completion.text(choice.index, response.text, logprobs))
                if response.finish_reason is not None:
                    ended[choice.index] = response
                    yield event(completion.last(choice.index, response.finish_reason))
            if completion.include_usage:
                yield event(completion.costs([ended[choice.index] for choice in choices]))
            yield DONE
        finally:
            for reader in readers:
                reader.cancel()
            cancel(scheduler, choices)

    async def models(self, _: Request) -> Response:
        """List the one model, once it answers."""
        self._service.ready()
        return JSONResponse({"object": "list", "data": [self._describe()]})

    async def model(self, request: Request) -> Response:
        """Describe the one model, once it answers."""
        self._service.ready()
        self._service.check_model(request.path_params["name"])
        return JSONResponse(self._describe())

    def _describe(self) -> dict[str, Any]:
        return {
            "id": self._service.options.served_name,
            "object": "model",
            "created": self._created,
            "owned_by": "jvlm-mlx",
        }

    async def image_layout(self, request: Request) -> Response:
        """Say how an image of `width` x `height` pixels is tiled; tiles as fractions of its sides.

        An extension, for pages that draw the tiles over an image.
        """
        _, processor = self._service.ready()
        sides = []
        for name in ("width", "height"):
            value = request.query_params.get(name, "")
            if not (value.isascii() and value.isdigit() and 0 < int(value[:7]) < 10**6):
                raise invalid(f"{name} must be a whole number of pixels", name)
            sides.append(int(value))
        try:
            layout = processor.image_layout(sides[0], sides[1])
        except JvlmError as error:
            raise invalid(str(error)) from None
        config = processor.image_processor.config
        tile, stride, canvas = config.tile_size, config.tile_stride, layout.canvas_size
        tiles = [
            [
                column * stride[1] / canvas[1], row * stride[0] / canvas[0],
                tile[1] / canvas[1], tile[0] / canvas[0],
            ]
            for row in range(layout.grid[0])
            for column in range(layout.grid[1])
        ]  # fmt: skip
        return JSONResponse(
            {"num_tiles": layout.num_tiles, "num_tokens": layout.num_tokens, "tiles": tiles}
        )

    async def health(self, _: Request) -> Response:
        """Say whether requests will be answered: 200, or 503 while loading or when stuck."""
        service = self._service
        if service.error is not None:
            return JSONResponse({"status": "error", "error": service.error}, 503)
        if service.scheduler is None:
            event_ = service.progress
            content: dict[str, Any] = {"status": "loading"}
            if event_ is not None:
                content |= {"done": event_.done, "total": event_.total, "unit": event_.unit}
            return JSONResponse(content, 503, headers={"Retry-After": str(LOADING_SECONDS)})
        return self._state(service.scheduler.is_alive)

    async def probe(self, request: Request) -> Response:
        """Say whether answers are generated: 200 once there is a token, or 503.

        The token is a request like any other. If it must wait for others, it is enough that these
        make progress.
        """
        scheduler, _ = self._service.ready()
        choice = self._service.prepare_probe(asyncio.get_running_loop())
        steps = scheduler.steps
        try:
            scheduler.submit([choice.job])
            with anyio.fail_after(PROBE_SECONDS):
                await _next_or_left(choice, request, scheduler)
        except TimeoutError:
            return self._state(scheduler.steps > steps + 1)  # the first may be its own
        except ApiError as error:
            return self._state(error.status == 429 and scheduler.is_alive)
        finally:
            cancel(scheduler, [choice])
        return self._state(True)

    def _state(self, is_well: bool) -> Response:
        """Return what health is answered with, and what goes on."""
        scheduler, _ = self._service.ready()
        return JSONResponse(
            {
                "status": "ok" if is_well else "stalled",
                "model": self._service.options.served_name,
                "queued": scheduler.queued,
                "active": scheduler.active,
                "memory_bytes": mx.get_active_memory(),
                "cache_bytes": scheduler.caches.nbytes,
            },
            200 if is_well else 503,
        )

    async def metrics(self, _: Request) -> Response:
        """Return the figures of the server in Prometheus' text format."""
        scheduler, _processor = self._service.ready()
        return PlainTextResponse(as_text(scheduler), media_type="text/plain; version=0.0.4")

    async def page(self, request: Request) -> Response:
        """Return the page, or one of its two files."""
        name = request.path_params.get("name", "index.html")
        if name not in ("index.html", "page.css", "page.js"):
            raise ApiError(404, "there is no such page", code="not_found")
        return FileResponse(PAGE / name, headers=_SECURITY_HEADERS)


async def _forward(
    choice: Choice, merged: "asyncio.Queue[tuple[Choice, GenerationResponse | ApiError]]"
) -> None:
    while True:
        merged.put_nowait((choice, await choice.responses.get()))


async def _next_or_left(
    choice: Choice, request: Request, scheduler: Scheduler
) -> GenerationResponse:
    """Return the next response of a choice.

    Raises:
        ApiError: it failed, the client has left, or nobody works on it any more.
    """
    while True:
        try:
            response = await asyncio.wait_for(choice.responses.get(), POLL_SECONDS)
        except asyncio.TimeoutError:
            if await request.is_disconnected():
                raise ApiError(499, "the client has left", code="client_closed") from None
            if not scheduler.is_alive:
                raise failed() from None
            continue
        if isinstance(response, ApiError):
            raise response
        return response


def _error(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body, error.status, headers=error.headers)


async def _http_error(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = error.detail if isinstance(error, HTTPException) else ""
    return _error(ApiError(status, str(detail).lower() or "not found", code="http_error"))


async def _server_error(_: Request, error: Exception) -> Response:
    # What was asked is not logged, only where it failed.
    logger.error("a request failed", exc_info=error)
    return _error(failed())
