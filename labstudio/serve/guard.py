"""What every request passes first: the address it was sent to, the token, the type and length of its body."""

from __future__ import annotations

import hmac
import logging
import re

from sse_starlette.sse import SendTimeoutError
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labstudio.serve.config import ServeConfig
from labstudio.serve.schemas import ApiError

log = logging.getLogger("labstudio.serve")

PUBLIC = {"/health", "/docs", "/openapi.json"}
"""Answered without a token. What they say is the same on every machine, and a browser that is led to /docs
cannot send one."""
LOCAL_NAMES = {"localhost", "127.0.0.1", "[::1]"}


class Guard:
    """Lets a request through, or answers it with an error itself."""

    def __init__(self, app: ASGIApp, config: ServeConfig) -> None:
        self.app, self.config = app, config
        assert config.token is not None
        self._token = config.token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, length = Headers(scope=scope), 0

        async def receive_limited() -> Message:
            nonlocal length
            message = await receive()
            length += len(message.get("body", b""))
            self._check_length(length)
            return message

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent = MutableHeaders(scope=message)
                sent["X-Content-Type-Options"] = "nosniff"
                sent["Cache-Control"] = "no-store"
            await send(message)

        try:
            self._check_host(headers)
            if scope["path"] not in PUBLIC:
                self._check_token(headers)
            if scope["method"] == "POST":
                self._check_kind(headers)
                declared = headers.get("content-length", "0")
                self._check_length(int(declared[:18]) if declared.isdecimal() else 0)
            await self.app(scope, receive_limited, send_safely)
        except ApiError as error:
            await error.response()(scope, receive, send_safely)
        except SendTimeoutError:
            log.warning("A client that did not read its answer was cut off.")

    def _check_host(self, headers: Headers) -> None:
        """A page from elsewhere whose name was made to point here (DNS rebinding) still sends its name."""
        if self.config.loopback:
            name = re.sub(r":\d*\Z", "", headers.get("host", "")).lower()
            if name not in LOCAL_NAMES | {self.config.host}:
                raise ApiError(
                    400,
                    f"Host {name[:80]!r} is not served here; address this server as localhost or 127.0.0.1.",
                    code="invalid_host",
                )

    def _check_token(self, headers: Headers) -> None:
        given = headers.getlist("authorization")
        scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        sent = token.strip().encode("latin-1")
        if scheme.lower() != "bearer" or not hmac.compare_digest(sent, self._token):
            raise ApiError(
                401,
                "Send the token that `labkit serve` printed or was given, once, as a header: "
                "Authorization: Bearer TOKEN.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _check_kind(self, headers: Headers) -> None:
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" or headers.get("content-encoding", "identity") != "identity":
            raise ApiError(
                415,
                f"A body of type {kind[:80]!r} cannot be read; send JSON, not compressed, with the header "
                "Content-Type: application/json.",
                code="unsupported_media_type",
            )

    def _check_length(self, length: int) -> None:
        if length > self.config.body_bytes:
            message = f"The body is longer than {self.config.body_bytes:,} bytes."
            raise ApiError(413, message, code="request_too_large")
