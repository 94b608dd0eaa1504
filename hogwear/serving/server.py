"""Runs the application with uvicorn until SIGTERM or Ctrl-C, and cuts slow clients off."""

import asyncio
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0  # for a request to begin
DRAIN_SECONDS = 30  # for answers that are under way when the server is stopped
MAX_CONNECTIONS = 256


class ImpatientProtocol(H11Protocol):
    """HTTP/1.1. Closes connections on which no request begins in time."""

    deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.expect_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.deadline:
            self.deadline.cancel()
        super().connection_lost(exc)

    def expect_request(self) -> None:
        if self.deadline:
            self.deadline.cancel()
        self.deadline = self.loop.call_later(HEADER_SECONDS, self.close_if_idle)

    def close_if_idle(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


class Server(uvicorn.Server):
    """Stops on the first SIGTERM or SIGINT, and lets its caller choose the exit code."""

    stopped_by: int | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in signal.SIGTERM, signal.SIGINT:
            loop.add_signal_handler(number, self.stop, number)
        yield

    def stop(self, number: int) -> None:
        self.stopped_by, self.should_exit = number, True


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections once a server runs. Raises OSError."""
    [family, kind, protocol, _, address], *_ = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(address)
    return listening


async def serve(app: ASGIApp, listening: socket.socket) -> int | None:
    """Serve until a signal, whose number is returned; what is under way is still answered."""
    config = uvicorn.Config(
        app,
        http=ImpatientProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    server = Server(config)
    await server.serve([listening])
    return server.stopped_by
