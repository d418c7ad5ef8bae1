"""The web server: uvicorn, with clocks for clients that hold a connection, and an end that says so."""

from __future__ import annotations

import asyncio
import signal
import socket

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from labstudio.serve.config import ServeConfig
from labstudio.serve.service import Service


def listen(config: ServeConfig) -> socket.socket:
    """A socket at the configured address.  Raises OSError, naming it, where that cannot be had."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family)
    except OSError as error:
        raise OSError(
            f"serve: cannot listen on {config.host}, port {config.port} ({error.strerror}). "
            "Another --port may be free; --port 0 takes any."
        ) from error


class Server(uvicorn.Server):
    """Serves an application made by `create_app` with that application's own limits.

    Once told to stop it takes no request any more; what still runs after grace_seconds ends with an error.
    """

    def __init__(self, app: FastAPI) -> None:
        self.service: Service = app.state.service
        config = self.service.config

        class Connection(ClockedConnection):
            idle_seconds, stall_seconds = config.idle_seconds, config.stall_seconds

        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                ws="none",
                loop="asyncio",
                log_level="warning",
                access_log=False,  # paths of requests are nobody's business
                proxy_headers=False,
                server_header=False,
                limit_concurrency=config.connections,
                timeout_keep_alive=max(1, round(config.idle_seconds)),
                timeout_graceful_shutdown=round(config.grace_seconds) + 3,
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop; called by uvicorn."""
        scheduler = self.service.scheduler
        scheduler.drain()
        asyncio.get_running_loop().call_later(self.service.config.grace_seconds, scheduler.end)
        await super().shutdown(sockets)

    def run_until_stopped(self, sockets: list[socket.socket]) -> None:
        """Serve in the main thread until SIGTERM, or SIGINT, after which KeyboardInterrupt is raised."""
        before = signal.signal(
            signal.SIGTERM, lambda number, frame: None
        )  # uvicorn repeats it when it is done
        try:
            self.run(sockets=sockets)
        finally:
            signal.signal(signal.SIGTERM, before)


class ClockedConnection(H11Protocol):
    """A connection that is closed when no request comes, and cut when its client does not read.

    uvicorn itself waits without end for the first request's head, and for a client to read.
    """

    idle_seconds: float
    stall_seconds: float
    _idle: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        for clock in (self._idle, self._stalled):
            if clock is not None:
                clock.cancel()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        if self._idle is not None and self.cycle is not None and not self.cycle.response_complete:
            self._idle.cancel()

    def on_response_complete(self) -> None:
        self._wait_for_request()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(self.stall_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()

    def _wait_for_request(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = self.loop.call_later(self.idle_seconds, self.timeout_keep_alive_handler)


def address(config: ServeConfig, sock: socket.socket) -> str:
    """The URL to connect to."""
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"http://{host}:{sock.getsockname()[1]}"
