"""The application: its routes, and the handlers that turn errors into answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response

from labkit.model import GPT
from labkit.text import Tokenizer
from labkit.training.run import labkit_version
from labstudio.serve.completions import completions_router
from labstudio.serve.config import ServeConfig
from labstudio.serve.docs import docs_page
from labstudio.serve.guard import Guard
from labstudio.serve.runs import runs_router
from labstudio.serve.schemas import (
    NOT_SUPPORTED,
    ApiError,
    ChatRequest,
    CompletionRequest,
    Health,
    JSONReply,
    ModelCard,
    ModelList,
    error_responses,
    shutting_down,
)
from labstudio.serve.service import Service

ABOUT = """Text from a model of your own, in the form that OpenAI's clients speak: give such a client this
server's address with /v1 as base URL and the token as API key. Not supported, and refused: echo, best_of,
suffix, penalties other than the repetition penalty, logit_bias, tools, images, formats other than text."""


def create_app(model: GPT, tokenizer: Tokenizer, config: ServeConfig, *, name: str = "labkit") -> FastAPI:
    """The API for one model, an ASGI application.

    config: must bring a token.  name: what requests call the model.
    Puts the model into evaluation mode; nothing else may use it meanwhile.
    Raises ValueError without a token.
    """
    if config.token is None:
        raise ValueError(
            "create_app: config has no token. ServeConfig(token=secrets.token_urlsafe()) has one."
        )
    service = Service(model, tokenizer, config, name)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.scheduler.end(timeout=config.grace_seconds)

    app = FastAPI(
        title="labkit serve",
        version=labkit_version(),
        description=ABOUT,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.service = service
    app.add_middleware(Guard, config=config)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)
    bearer = Depends(HTTPBearer(auto_error=False, description="The token of `labkit serve`."))
    for router in (_models_router(service), completions_router(service), runs_router(service)):
        app.include_router(router, dependencies=[bearer], responses=error_responses(400, 401, "4XX"))

    @app.get("/health", summary="Is the server there?", tags=["server"], response_model=Health,
             responses=error_responses(400, 503))  # fmt: skip
    async def health() -> Response:
        """Say whether requests are answered. Needs no token."""
        if service.scheduler.draining:
            raise shutting_down()
        return JSONReply({"status": "ok"})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(
            docs_page(app.openapi()),
            headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"},
        )

    return app


def _models_router(service: Service) -> APIRouter:
    router = APIRouter(tags=["models"])
    card = {
        "id": service.name,
        "object": "model",
        "created": service.created,
        "owned_by": "labkit",
        "context_length": service.model.config.context_length,
        "chat": service.is_chat,
    }

    @router.get("/v1/models", summary="List the models", response_model=ModelList)
    async def list_models() -> Response:
        """List the models that can be asked: there is one."""
        return JSONReply({"object": "list", "data": [card]})

    @router.get(
        "/v1/models/{model_id}",
        summary="Show a model",
        response_model=ModelCard,
        responses=error_responses(404),
    )
    async def show_model(
        model_id: Annotated[str, Path(description="The model's name.", examples=["shipped"])],
    ) -> Response:
        """Tell a model's context length, and whether it was made for conversations."""
        service.check_model(model_id, param=None)
        return JSONReply(card)

    return router


async def _http(request: Request, error: Exception) -> Response:
    """Our own errors; else no such address (404), not with this method (405), or unreadable JSON (400)."""
    assert isinstance(error, HTTPException)
    if isinstance(error, ApiError):
        return error.response()
    if error.status_code == 400:
        return ApiError(400, "The body cannot be read as JSON.", code="invalid_json").response()
    headers = dict(error.headers or {})
    message = f"{request.method} {request.url.path[:200]}: {error.detail}. See /docs."
    return ApiError(error.status_code, message, headers=headers).response()


async def _unexpected(request: Request, error: Exception) -> Response:
    return ApiError(500, "Something went wrong in the server; see its log.", code="internal_error").response()


_UNSUPPORTED = {
    name
    for kind in (CompletionRequest, ChatRequest)
    for name, field in kind.model_fields.items()
    if field.description == NOT_SUPPORTED
}


async def _invalid(request: Request, error: Exception) -> Response:
    """Name the first parameter that is wrong; its value is not repeated."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = [str(part)[:80] for part in first["loc"][1:]]
    param = ".".join(place) or None
    if first["type"] == "json_invalid":
        return ApiError(400, "The body is not valid JSON.", code="invalid_json").response()
    if place and place[0] in _UNSUPPORTED:
        message, code = f"{place[0]} is not supported by labkit serve; leave it out.", "unsupported_parameter"
    elif first["type"] == "extra_forbidden":
        message, code = f"{param} is not known here; see /docs.", "unknown_parameter"
    elif first["type"] == "missing":
        message, code = f"{param or 'The body'} is missing.", "missing_required_parameter"
    else:
        reason = first["msg"].removeprefix("Value error, ")
        message, code = f"{param or 'The body'}: {reason}.", "invalid_value"
    return ApiError(400, message.replace("..", "."), param=param, code=code).response()
