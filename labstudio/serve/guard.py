"""What stands before the API: the right address, the token, and a body of bounded size and time."""

from __future__ import annotations

import asyncio
import hmac
import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labstudio.serve.config import ServeConfig
from labstudio.serve.errors import ApiError

PUBLIC = {"/health", "/docs", "/openapi.json"}
"""Answered without a token. What they say is the same on every machine, and a browser that is led to /docs
cannot send one."""
LOCAL_NAMES = {"localhost", "127.0.0.1", "[::1]"}


class Guard:
    """Lets a request through with its body, which was read whole, or answers itself."""

    def __init__(self, app: ASGIApp, config: ServeConfig) -> None:
        self.app, self.config = app, config
        assert config.token is not None
        self._token = config.token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Cache-Control"] = "no-store"
            await send(message)

        try:
            headers = Headers(scope=scope)
            self._check_host(headers)
            if scope["path"] not in PUBLIC:
                self._check_token(headers)
            if scope["method"] == "POST":
                self._check_kind(headers)
                receive = _again(await self._body(headers, receive), receive)
        except ApiError as error:
            await error.response()(scope, receive, send_safely)
        else:
            await self.app(scope, receive, send_safely)

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

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        limit, body = self.config.body_bytes, bytearray()
        declared = headers.get("content-length", "0")
        too_long = declared.isdecimal() and (len(declared) > 18 or int(declared) > limit)
        try:
            async with asyncio.timeout(self.config.body_seconds):
                more = True
                while more and not too_long:
                    message = await receive()
                    body += message.get("body", b"")
                    more = message["type"] == "http.request" and message.get("more_body", False)
                    too_long = len(body) > limit
        except TimeoutError:
            raise ApiError(
                408, f"The body did not arrive within {self.config.body_seconds:g} s.", code="timeout"
            ) from None
        if too_long:
            raise ApiError(413, f"The body is longer than {limit:,} bytes.", code="request_too_large")
        return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """The body, once more, and then what comes after it: that the client has gone."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay
