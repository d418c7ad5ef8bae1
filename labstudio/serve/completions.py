"""POST /v1/completions and /v1/chat/completions: OpenAI's format around generation."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from starlette.responses import Response

from labkit.text import Tokenizer, encode_chat
from labstudio.serve.schemas import (
    ApiError,
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    JSONReply,
    Sampling,
    generation_responses,
    invalid,
    to_json,
)
from labstudio.serve.service import Delta, Generation, Service

T = TypeVar("T")

DEFAULT_MAX_TOKENS = 16
LEAST_LOG_PROBABILITY = -9999.0
"""JSON has no minus infinity."""


def completions_router(service: Service) -> APIRouter:
    """Both operations, for one model."""
    router = APIRouter(tags=["text"])

    @router.post("/v1/completions", summary="Continue texts", responses=generation_responses(Completion))
    async def complete(asked: CompletionRequest, request: Request) -> Response:
        """Continue one or several prompts, each n times, to max_tokens, the end of the text or a stop string.

        A prompt must fit the model's context; the text that follows may outgrow it.
        """
        service.check_model(asked.model)
        service.check_bytes([each for each in asked.prompts if isinstance(each, str)], "prompt")
        encode = service.tokenizer.encode
        generation = await service.begin(
            asked,
            lambda: [encode(each) if isinstance(each, str) else each for each in asked.prompts],
            param="prompt",
            max_tokens=("max_tokens", asked.max_tokens or DEFAULT_MAX_TOKENS),
            logprobs=asked.logprobs,
        )
        reply = CompletionFormat(service.tokenizer, logprobs=asked.logprobs is not None)
        return await _answer(service, request, asked, generation, reply)

    @router.post(
        "/v1/chat/completions",
        summary="Answer a conversation",
        responses=generation_responses(ChatCompletion),
    )
    async def chat(asked: ChatRequest, request: Request) -> Response:
        """Answer a conversation, with a model made for that (such as smollm2); others say 400.

        The model's own chat template turns the messages into a prompt.
        """
        service.check_model(asked.model)
        if not service.is_chat:
            raise invalid(
                "model",
                f"{service.name!r} was not made for conversations: its tokenizer has no chat template. "
                "Continue a text instead, with /v1/completions; or serve a model that was, such as smollm2.",
                "not_a_chat_model",
            )
        if asked.top_logprobs is not None and not asked.logprobs:
            raise invalid("top_logprobs", "goes with logprobs=true.")
        messages = [message.model_dump() for message in asked.messages]
        service.check_bytes(["".join(message["content"] for message in messages)], "messages")
        limit = "max_completion_tokens" if asked.max_completion_tokens else "max_tokens"
        generation = await service.begin(
            asked,
            lambda: [encode_chat(service.tokenizer, messages)],
            param="messages",
            max_tokens=(limit, getattr(asked, limit) or service.config.max_tokens),
            logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
        )
        reply = ChatFormat(service.tokenizer, logprobs=bool(asked.logprobs))
        return await _answer(service, request, asked, generation, reply)

    return router


class CompletionFormat:
    """Texts as /v1/completions writes them."""

    id_prefix, whole_object, stream_object = "cmpl", "text_completion", "text_completion"

    def __init__(self, tokenizer: Tokenizer, *, logprobs: bool) -> None:
        self._tokenizer, self._logprobs = tokenizer, logprobs

    def first(self, index: int) -> None:
        """Nothing comes before the text."""

    def delta(self, index: int, delta: Delta) -> dict[str, Any]:
        """The next characters of a text, or all of them."""
        logprobs = None
        if self._logprobs:
            tokens = [token for _, token in delta.tokens]
            logprobs = {
                "tokens": [self._text(token.id) for token in tokens],
                "token_logprobs": [finite(token.log_probability) for token in tokens],
                "top_logprobs": [
                    {
                        self._text(id): finite(value)
                        for id, value in [(token.id, token.log_probability), *token.alternatives]
                    }
                    for token in tokens
                ],
                "text_offset": [start for start, _ in delta.tokens],
            }
        return {"index": index, "text": delta.text, "logprobs": logprobs, "finish_reason": delta.finish}

    whole = delta

    def _text(self, token: int) -> str:
        return token_text(self._tokenizer.token_bytes(token))


class ChatFormat:
    """Texts as /v1/chat/completions writes them."""

    id_prefix, whole_object, stream_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, tokenizer: Tokenizer, *, logprobs: bool) -> None:
        self._tokenizer, self._logprobs = tokenizer, logprobs

    def first(self, index: int) -> dict[str, Any]:
        """The role of the speaker."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def delta(self, index: int, delta: Delta) -> dict[str, Any]:
        """The next characters of an answer."""
        return self._choice(index, delta, {"delta": {"content": delta.text} if delta.text else {}})

    def whole(self, index: int, delta: Delta) -> dict[str, Any]:
        """A whole answer."""
        return self._choice(index, delta, {"message": {"role": "assistant", "content": delta.text}})

    def _choice(self, index: int, delta: Delta, content: dict[str, Any]) -> dict[str, Any]:
        logprobs = None
        if self._logprobs:
            logprobs = {
                "content": [
                    self._logprob(token.id, token.log_probability)
                    | {"top_logprobs": [self._logprob(*other) for other in token.alternatives]}
                    for _, token in delta.tokens
                ]
            }
        return {"index": index, **content, "logprobs": logprobs, "finish_reason": delta.finish}

    def _logprob(self, token: int, value: float | None) -> dict[str, Any]:
        data = self._tokenizer.token_bytes(token)
        return {"token": token_text(data), "logprob": finite(value), "bytes": list(data)}


Format = CompletionFormat | ChatFormat


async def _answer(
    service: Service, request: Request, asked: Sampling, generation: Generation, reply: Format
) -> Response:
    """Write to a client: all at once, or as server-sent events."""
    head: dict[str, Any] = {
        "id": f"{reply.id_prefix}-{secrets.token_hex(12)}",
        "object": reply.stream_object if asked.stream else reply.whole_object,
        "created": int(time.time()),
        "model": service.name,
        "seed": generation.seed,
    }
    deltas = generation.deltas()
    try:
        if asked.stream:  # what goes wrong before the first delta has a status of its own
            first = await _while_connected(request, anext(deltas))
            usage = asked.stream_options is not None and asked.stream_options.include_usage
            return service.event_stream(_events(head, first, deltas, generation, reply, usage))
        texts = await _while_connected(request, _collected(deltas, generation.n_texts))
    except BaseException:
        generation.job.close()
        raise
    choices = [reply.whole(index, delta) for index, delta in enumerate(texts)]
    return JSONReply(head | {"choices": choices, "usage": generation.usage()})


async def _collected(deltas: AsyncGenerator[tuple[int, Delta]], n_texts: int) -> list[Delta]:
    """Each text as one delta."""
    texts: list[list[Delta]] = [[] for _ in range(n_texts)]
    async for index, delta in deltas:
        texts[index].append(delta)
    return [
        Delta(
            "".join(part.text for part in parts),
            [token for part in parts for token in part.tokens],
            parts[-1].finish,
        )
        for parts in texts
    ]


async def _while_connected(request: Request, work: Awaitable[T]) -> T:
    """The result of the work, which is cancelled when the client goes away.  Raises ApiError then."""
    working = asyncio.ensure_future(work)

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        working.cancel()

    watching = asyncio.ensure_future(watch())
    try:
        return await working
    except asyncio.CancelledError:
        if watching.done():
            raise ApiError(408, "The client went away.", code="client_gone") from None
        raise
    finally:
        watching.cancel()


async def _events(
    head: dict[str, Any],
    first: tuple[int, Delta],
    deltas: AsyncGenerator[tuple[int, Delta]],
    generation: Generation,
    reply: Format,
    usage: bool,
) -> AsyncGenerator[dict[str, str]]:
    head_and_usage = head | ({"usage": None} if usage else {})

    def event(choice: dict[str, Any]) -> dict[str, str]:
        return {"data": to_json(head_and_usage | {"choices": [choice]})}

    try:
        for index in range(generation.n_texts):
            if opening := reply.first(index):
                yield event(opening)
        yield event(reply.delta(*first))
        async for index, delta in deltas:
            yield event(reply.delta(index, delta))
        if usage:
            yield {"data": to_json(head | {"choices": [], "usage": generation.usage()})}
        yield {"data": "[DONE]"}
    except ApiError as error:
        yield {"data": to_json(error.content())}
    finally:
        generation.job.close()


def token_text(data: bytes) -> str:
    """A token's text; bytes that are no whole character as OpenAI writes them."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def finite(log_probability: float | None) -> float:
    """A log-probability that JSON can hold."""
    assert log_probability is not None
    return max(log_probability, LEAST_LOG_PROBABILITY)
