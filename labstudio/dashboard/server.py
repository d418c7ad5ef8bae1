"""The web server of `labkit dashboard`: Voila with one notebook, behind a token."""

from __future__ import annotations

import errno
import html
import logging
import os
import secrets
import socket
import threading
import webbrowser
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.netutil import bind_sockets
from traitlets import default
from traitlets.config import Config
from voila.app import Voila

HERE = Path(__file__).parent
TEMPLATES = HERE / "voila"

EXTENSIONS = ["anywidget", "@jupyter-widgets/jupyterlab-manager", "@voila-dashboards/widgets-manager8"]
FORGOTTEN_AFTER = 30 * 60
"""Seconds after which a page that vanished without closing loses its kernel."""


class ThisPython(KernelSpecManager):
    """One kernel: the Python that this command runs with, whatever else is installed."""

    @default("kernel_dirs")
    def _no_others(self) -> list[str]:
        return []


class DashboardServer(Voila):
    """Voila with the dashboard's templates; it listens on sockets that are open already."""

    def __init__(self, sockets: list[socket.socket], open_browser: bool, **options: Any) -> None:
        super().__init__(**options)
        self.sockets = sockets
        self.opens_browser = open_browser

    def setup_template_dirs(self) -> None:
        super().setup_template_dirs()
        self.template_paths.insert(0, str(TEMPLATES))

    def init_settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = super().init_settings()
        settings["jinja2_env"].loader.searchpath.insert(0, str(TEMPLATES))
        return settings

    def init_handlers(self) -> list[Any]:
        """Voila's, without what the page never asks for."""
        unused = ("/voila/templates", "/voila/api/themes", "/logout")
        return [handler for handler in super().init_handlers() if not handler[0].startswith(unused)]

    def listen(self) -> None:
        """Say where the page is, and serve it until Ctrl-C or SIGTERM."""
        HTTPServer(self.app).add_sockets(self.sockets)
        host, port = self.sockets[0].getsockname()[:2]
        name = socket.gethostname() if host == "0.0.0.0" else host
        print(f"The dashboard: http://{name}:{port}/?token={self.token}", flush=True)
        if host == "0.0.0.0":
            print("Other machines can reach it too, and the connection is not encrypted.", flush=True)
        print("Ctrl-C ends it; trainings that it started continue.", flush=True)
        if self.opens_browser:
            self._open(f"http://127.0.0.1:{port}/?token={self.token}")
        self.ioloop = IOLoop.current()
        try:
            self.ioloop.start()
        except KeyboardInterrupt:
            pass
        finally:
            self.stop()

    def _open(self, address: str) -> None:
        """Open the browser by way of a file that others cannot read: commands' options they can."""
        page = Path(self.connection_dir) / "open.html"
        target = html.escape(address, quote=True)
        page.write_text(f'<!doctype html><meta http-equiv="refresh" content="0;url={target}">')
        threading.Thread(target=webbrowser.open, args=[page.as_uri()], daemon=True).start()


def serve(address: str, port: int | None, token: str, *, open_browser: bool) -> None:
    """Serve the dashboard until it is ended.  Raises ValueError when the port is taken."""
    try:
        sockets = bind_sockets(port or 0, address, socket.AF_INET)
    except OSError as error:
        taken = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise ValueError(f"dashboard: port {port} {taken}. Leave --port out to get a free one.") from error
    nonce = secrets.token_urlsafe(16)
    config = Config(
        {
            "Voila": {
                "token": token,
                "open_browser": False,
                "log_level": logging.ERROR,
                "config_file_paths": [],  # no settings of other Voilas
                "notebook_path": str(HERE / "dashboard.ipynb"),
                "root_dir": str(HERE),
                "tornado_settings": {"headers": _headers(nonce)},
            },
            "VoilaConfiguration": {
                "allow_template_override": "NO",
                "theme": "system",
                "http_keep_alive_timeout": 86_400,  # else a script that the policy forbids is sent
                "file_allowlist": [],
                "kernel_spec_manager_class": ThisPython,
                "extension_allowlist": EXTENSIONS,
                "prelaunch_hook": _let_it_say_farewell,
                "resources": {"nonce": nonce},
            },
            "PasswordIdentityProvider": {"allow_password_change": False},
            "KernelManager": {"transport": "ipc" if os.name == "posix" else "tcp"},
            "AsyncMappingKernelManager": {"cull_idle_timeout": FORGOTTEN_AFTER, "cull_interval": 60},
        }
    )
    logging.getLogger("tornado.general").setLevel(logging.ERROR)  # warns of how Jupyter sets it up
    server = DashboardServer(sockets, open_browser, config=config)
    server.initialize([])
    server.start()


def _let_it_say_farewell(handler: Any, notebook: Any, cwd: str) -> None:
    """Set the cookie whose value a page must send back when it is closed and ends its kernel."""
    assert handler.xsrf_token


def _headers(nonce: str) -> dict[str, str]:
    """What the browser is told to refuse: whatever is not from this server."""
    policy = {
        "default-src": "'self'",
        "script-src": f"'self' 'nonce-{nonce}' blob:",  # anywidget imports its modules from blobs
        "style-src": "'self' 'unsafe-inline'",
        "img-src": "'self' data: blob:",
        "font-src": "'self' data:",
        "object-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'self'",
        "frame-ancestors": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {allowed}" for name, allowed in policy.items()),
        "Referrer-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
    }
