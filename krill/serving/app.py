"""Builds the application of the server: its paths, and how requests are read and answered."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from krill.config.schema import LimitsConfig
from krill.serving.calls import Call, ServedModel
from krill.serving.errors import ApiError
from krill.serving.guard import Guard
from krill.serving.metrics import Metrics
from krill.serving.requests import ChatRequest, CompletionRequest, parse_body
from krill.serving.worker import GenerationWorker, RequestStream

log = logging.getLogger("krill")

DISCARD_SECONDS = 2.0
"""Time in which the rest of a body that is too large is read, because a client that is sending reads no answer."""
CLIENT_CLOSED_REQUEST = 499
"""Status that the metrics show for a client that has hung up."""
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

Endpoint = Callable[[Request], Awaitable[Response]]


def build_app(served: ServedModel, worker: GenerationWorker, guard: Guard) -> ASGIApp:
    """Returns the ASGI application that answers with one model."""
    return _Gate(_Paths(served, worker).app, guard)


class _Gate:
    """Lets requests through that the guard allows, and counts all of them."""

    def __init__(self, app: Starlette, guard: Guard):
        self._app, self._guard = app, guard
        self._metrics: Metrics = app.state.metrics
        self._paths = {route.path for route in app.routes if isinstance(route, Route)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        start, status = time.monotonic(), CLIENT_CLOSED_REQUEST

        async def count_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._guard.check(scope["path"], Headers(scope=scope))
            await self._app(scope, receive, count_status)
        except ApiError as error:
            await _build_error(error)(scope, receive, count_status)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.count_request(path, status, time.monotonic() - start)


class _Paths:
    """The end points of the server."""

    def __init__(self, served: ServedModel, worker: GenerationWorker):
        self._served, self._worker, self._metrics = served, worker, Metrics()
        self._page = files("krill.serving").joinpath("page.html").read_text(encoding="utf-8")
        self.app = Starlette(
            routes=[
                Route("/", self._show_page),
                Route("/health", self._show_health),
                Route("/metrics", self._show_metrics),
                Route("/v1/models", self._list_models),
                Route("/v1/models/{name:path}", self._show_model),
                Route("/v1/completions", _catch(self._complete), methods=["POST"]),
                Route("/v1/chat/completions", _catch(self._chat), methods=["POST"]),
            ],
            exception_handlers={HTTPException: _answer_http_error, ApiError: _answer_api_error},
        )
        self.app.state.metrics = self._metrics

    async def _show_page(self, request: Request) -> Response:
        return HTMLResponse(self._page, headers=PAGE_HEADERS)

    async def _show_health(self, request: Request) -> Response:
        if self._worker.is_alive:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "stopping"}, 503)

    async def _show_metrics(self, request: Request) -> Response:
        text = self._metrics.format(self._worker.active, self._worker.waiting)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def _list_models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._served.describe()]})

    async def _show_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name != self._served.name:
            raise ApiError(
                404, f"no model {name!r} here; use {self._served.name!r}", "model", "model_not_found"
            )
        return JSONResponse(self._served.describe())

    async def _complete(self, request: Request) -> Response:
        body = parse_body(CompletionRequest, await read_body(request, self._served.limits))
        return await self._generate(request, self._served.build_completion(body), bool(body.stream))

    async def _chat(self, request: Request) -> Response:
        body = parse_body(ChatRequest, await read_body(request, self._served.limits))
        return await self._generate(request, self._served.build_chat(body), bool(body.stream))

    async def _generate(self, request: Request, call: Call, is_stream: bool) -> Response:
        stream = self._worker.submit(call.generations)
        if is_stream:
            return _EventStream(self._stream(call, stream), lambda: self._end(call, stream))
        try:
            await _run_until_disconnect(_collect(call, stream), request)
            return JSONResponse(call.build_response())
        finally:
            self._end(call, stream)

    async def _stream(self, call: Call, stream: RequestStream) -> AsyncIterator[str]:
        try:
            async for piece in stream:
                for chunk in call.build_chunks(call.add(piece)):
                    yield _format_event(chunk)
            for chunk in call.end_stream():
                yield _format_event(chunk)
            yield "data: [DONE]\n\n"
        except ApiError as error:  # the status has been sent already
            yield _format_event(error.content)

    def _end(self, call: Call, stream: RequestStream) -> None:
        """Ends the stream of a client that has received everything, or has hung up."""
        self._metrics.disconnects += not stream.is_finished
        self._worker.cancel(stream)
        self._metrics.count_usage(call.usage)


async def read_body(request: Request, limits: LimitsConfig) -> bytes:
    """Returns the body of a request. Raises ApiError if it is too large or takes too long."""
    body, has_more = bytearray(), True
    close = {"Connection": "close"}
    try:
        async with asyncio.timeout(limits.body_seconds):
            while has_more and len(body) <= limits.body_bytes:
                part, has_more = await _read_part(request)
                body += part
    except TimeoutError:
        raise ApiError(
            408, f"the body did not arrive within {limits.body_seconds} s", headers=close
        ) from None
    if len(body) <= limits.body_bytes:
        return bytes(body)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_SECONDS):
            while has_more:
                _, has_more = await _read_part(request)
    raise ApiError(413, f"the body has more than {limits.body_bytes:,} bytes", headers=close)


async def _read_part(request: Request) -> tuple[bytes, bool]:
    """Returns the next part of the body, and whether there are more. Raises ClientDisconnect."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message.get("body", b""), message.get("more_body", False)


async def _collect(call: Call, stream: RequestStream) -> None:
    async for piece in stream:
        call.add(piece)


async def _run_until_disconnect(work: Any, request: Request) -> None:
    """Awaits `work`. Cancels it and raises ClientDisconnect if the client hangs up."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        await task
    finally:
        for item in (task, watch):
            item.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _EventStream(StreamingResponse):
    """Server-sent events; `close` is called at their end, and when the client hangs up."""

    def __init__(self, events: AsyncIterator[str], close: Callable[[], None]):
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


def _format_event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _catch(endpoint: Endpoint) -> Endpoint:
    """Returns the end point with unexpected errors logged and answered as errors of the API."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        except ApiError:
            raise
        except Exception as error:
            log.error("request     failed", exc_info=error)
            raise ApiError(500, f"failed: {type(error).__name__}; see the server's log") from error

    return answer


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    wrong = "no such path" if error.status_code == 404 else error.detail
    headers = dict(error.headers or {})
    return _build_error(
        ApiError(error.status_code, f"{request.method} {request.scope['path']}: {wrong}", headers=headers)
    )


async def _answer_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _build_error(error)


def _build_error(error: ApiError) -> Response:
    return JSONResponse(error.content, error.status, error.headers)
