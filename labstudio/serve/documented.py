"""What the documentation says of answers that several operations give."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from labstudio.serve.schemas import ErrorReply

Answers = dict[int | str, dict[str, Any]]

_MEANINGS = {
    400: "Something in the request is wrong; the message says what.",
    401: "The token is missing or wrong.",
    404: "There is no such model or run.",
    408: "The body came too slowly.",
    413: "The body is too long.",
    415: "The body is not JSON.",
    429: "Too many requests at once; Retry-After says when to come again.",
    503: "The request took too long, failed in the model, or the server is shutting down.",
}


EVENT = {
    "type": "object",
    "description": "One server-sent event.",
    "properties": {
        "data": {"type": "string", "description": "JSON, or [DONE]."},
        "event": {"type": "string", "description": "Its kind, where it is no plain message."},
        "id": {"type": "string", "description": "What Last-Event-ID can name."},
    },
}


def errors(*statuses: int) -> Answers:
    """The errors of an operation."""
    return {status: {"model": ErrorReply, "description": _MEANINGS[status]} for status in statuses}


WRITING_ERRORS = errors(*_MEANINGS)


def streamed(model: type[BaseModel]) -> dict[str, Any]:
    """An answer that is sent whole as JSON or, when asked for, in parts."""
    events = {
        "schema": EVENT,
        "example": 'data: {"id": "…", "choices": […]}\n\ndata: [DONE]\n\n',
    }
    return {
        "model": model,
        "description": "The texts; with stream, server-sent events with a part each, the last one [DONE].",
        "content": {"text/event-stream": events},
    }
