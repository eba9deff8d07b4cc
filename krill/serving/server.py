"""Listens on an address and serves until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from krill.errors import UsageError
from krill.serving.worker import GenerationWorker

KEEP_ALIVE_SECONDS = 30
HEADERS_SECONDS = 30
"""Time in which the headers of a request must arrive. uvicorn waits forever once a connection is open."""
STOP_SECONDS = 10
"""Time in which clients get the end of their answers before connections are cut."""
_ADDRESS_ERRORS = {
    errno.EADDRINUSE: "the port is in use; use serve.port=0 for any free one",
    errno.EACCES: "this user may not use the port; use one from 1024",
    errno.EADDRNOTAVAIL: "not an address of this machine; use 127.0.0.1, or 0.0.0.0 for all of its addresses",
}


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that accepts connections. Raises UsageError if the address cannot be used."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        reason = _ADDRESS_ERRORS.get(error.errno or 0, f"{error.strerror}; use 127.0.0.1")
        raise UsageError(f"serve.host={host} serve.port={port}: {reason}") from error


def format_url(listener: socket.socket) -> str:
    """Returns the address of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    app: ASGIApp, worker: GenerationWorker, listener: socket.socket, exit_codes: dict[signal.Signals, int]
) -> signal.Signals:
    """Serves until one of the signals of `exit_codes`, and returns it; a second one exits at once with its code.

    Answers that are being generated end at the next token.
    """
    return asyncio.run(_serve(app, worker, listener, exit_codes))


async def _serve(
    app: ASGIApp, worker: GenerationWorker, listener: socket.socket, exit_codes: dict[signal.Signals, int]
) -> signal.Signals:
    server = build_server(app)
    received: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        if received:
            os._exit(exit_codes[number])
        received.append(number)
        server.should_exit = True
        worker.stop(timeout=0)

    for number in exit_codes:
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    worker.start()
    await server.serve(sockets=[listener])
    worker.stop()
    return received[0]


class _Server(uvicorn.Server):
    """A server of uvicorn whose signals krill handles."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Protocol(H11Protocol):
    """A connection that is closed if no request begins on it within HEADERS_SECONDS."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the time limit of the first request."""
        super().connection_made(transport)
        self._limit_idle_time()

    def data_received(self, data: bytes) -> None:
        """Reads from the connection, which ends uvicorn's own limit between two requests."""
        super().data_received(data)
        self._limit_idle_time()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the time limit."""
        super().connection_lost(exc)
        self._cancel_timer()

    def _limit_idle_time(self) -> None:
        """Keeps the time limit running while no request is answered: its headers, or a body nobody reads, arrive."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._cancel_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEADERS_SECONDS, self.transport.close)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def build_server(app: ASGIApp) -> uvicorn.Server:
    """Returns the HTTP server of an application; its requests are not logged."""
    return _Server(
        uvicorn.Config(
            app, http=_Protocol, ws="none", lifespan="off", loop="asyncio", log_config=None, log_level="error",
            access_log=False, server_header=False, proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS, timeout_graceful_shutdown=STOP_SECONDS,
        )
    )  # fmt: skip
