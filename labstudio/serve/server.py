"""The web server: uvicorn with the limits of the configuration, and an end that tells its clients."""

from __future__ import annotations

import asyncio
import signal
import socket

import uvicorn
from fastapi import FastAPI

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
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                loop="asyncio",
                log_level="warning",
                access_log=False,  # paths name runs, which are private
                proxy_headers=False,
                server_header=False,
                limit_concurrency=config.connections,
                timeout_keep_alive=config.idle_seconds,
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
        # uvicorn raises the signal once more when it is done
        before = signal.signal(signal.SIGTERM, lambda number, frame: None)
        try:
            self.run(sockets=sockets)
        finally:
            signal.signal(signal.SIGTERM, before)


def address(config: ServeConfig, sock: socket.socket) -> str:
    """The URL to connect to."""
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"http://{host}:{sock.getsockname()[1]}"
