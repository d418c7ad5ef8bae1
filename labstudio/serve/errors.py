"""Errors as OpenAI's clients expect them."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from labstudio.serve.replies import JSONReply

KINDS = {401: "authentication_error", 408: "timeout_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer other than the one that was asked for.

    param: the parameter that is wrong, None where it is none.  code: a short name for programs.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers

    def content(self) -> dict[str, Any]:
        """What the body says."""
        kind = "server_error" if self.status >= 500 else KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The whole answer."""
        return JSONReply(self.content(), self.status, self.headers)


def wrong(param: str, message: str, code: str = "invalid_value") -> ApiError:
    """The answer to a request in which this parameter is wrong."""
    return ApiError(400, f"{param}: {message}", param=param, code=code)


def shutting_down() -> ApiError:
    """The answer while the server is stopped."""
    return ApiError(503, "The server is shutting down.", code="shutting_down")


def too_many(what: str) -> ApiError:
    """The answer to one request too many."""
    return ApiError(
        429, f"{what} Try again in a moment.", code="rate_limit_exceeded", headers={"Retry-After": "1"}
    )
