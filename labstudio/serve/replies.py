"""Answers: JSON of any text, and server-sent events that end when the client has gone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")


def to_json(content: Any) -> str:
    """Compact JSON in ASCII: half a UTF-16 pair, as file names may hold, is written as its escape."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False)


class JSONReply(JSONResponse):
    """JSON, whatever the texts in it hold."""

    def render(self, content: Any) -> bytes:
        return to_json(content).encode()


def sse(
    content: Any = None, *, event: str | None = None, id: str | None = None, comment: str | None = None
) -> bytes:
    """One server-sent event; a content that is no text is written as JSON."""
    lines = [f": {comment}"] if comment is not None else []
    lines += [f"event: {event}"] if event is not None else []
    lines += [f"id: {id}"] if id is not None else []
    if content is not None:
        lines.append(f"data: {content if isinstance(content, str) else to_json(content)}")
    return ("\n".join(lines) + "\n\n").encode()


class EventStream(Response):
    """Server-sent events; closes their generator also when the client goes away."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes]) -> None:
        super().__init__(headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for event in self.events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        try:
            await while_connected(receive, write())
        finally:
            await self.events.aclose()


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """What the work returns; None, and the work is cancelled, when the client goes away before."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    doing, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({doing, watching}, return_when=asyncio.FIRST_COMPLETED)
        return doing.result() if doing.done() else None
    finally:
        doing.cancel()
        watching.cancel()
        await asyncio.gather(doing, watching, return_exceptions=True)
