"""POST /v1/chat/completions: answer a conversation."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from labkit.text import Tokenizer, encode_chat
from labstudio.serve.chances import log_probability, token_text
from labstudio.serve.documented import WRITING_ERRORS, streamed
from labstudio.serve.errors import wrong
from labstudio.serve.requests import ChatRequest
from labstudio.serve.schemas import ChatCompletion
from labstudio.serve.service import Piece, Service


def chat_router(service: Service) -> APIRouter:
    """The operation, for one model."""
    router = APIRouter(tags=["text"])

    @router.post(
        "/v1/chat/completions",
        summary="Answer a conversation",
        responses={200: streamed(ChatCompletion), **WRITING_ERRORS},
    )
    async def chat(asked: ChatRequest, request: Request) -> Response:
        """Answer a conversation, with a model made for that (such as smollm2); others say 400.

        The model's own chat template turns the messages into a prompt.
        """
        service.check_model(asked.model)
        if not service.is_chat:
            raise wrong(
                "model",
                f"{service.name!r} was not made for conversations: its tokenizer has no chat template. "
                "Continue a text instead, with /v1/completions; or serve a model that was, such as smollm2.",
                "not_a_chat_model",
            )
        if asked.top_logprobs is not None and not asked.logprobs:
            raise wrong("top_logprobs", "goes with logprobs=true.")
        messages = [message.model_dump() for message in asked.messages]
        service.check_bytes(["".join(message["content"] for message in messages)], "messages")
        named = "max_completion_tokens" if asked.max_completion_tokens else "max_tokens"
        writing = await service.begin(
            asked,
            lambda: [encode_chat(service.tokenizer, messages)],
            param="messages",
            max_tokens=(named, getattr(asked, named) or service.config.max_tokens),
            logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
        )
        form = ChatForm(service.tokenizer, logprobs=bool(asked.logprobs))
        return await service.answer(request, asked, writing, form)

    return router


class ChatForm:
    """Texts as /v1/chat/completions writes them."""

    kinds = ("chatcmpl", "chat.completion", "chat.completion.chunk")

    def __init__(self, tokenizer: Tokenizer, *, logprobs: bool) -> None:
        self._tokenizer, self._logprobs = tokenizer, logprobs

    def opening(self, index: int) -> dict[str, Any]:
        """Who speaks."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def part(self, index: int, piece: Piece) -> dict[str, Any]:
        """A piece of an answer."""
        return self._choice(index, piece, "delta", {"content": piece.text} if piece.text else {})

    def whole(self, index: int, piece: Piece) -> dict[str, Any]:
        """A whole answer."""
        return self._choice(index, piece, "message", {"role": "assistant", "content": piece.text})

    def _choice(self, index: int, piece: Piece, place: str, said: dict[str, str]) -> dict[str, Any]:
        logprobs = None
        if self._logprobs:
            logprobs = {
                "content": [
                    self._chance(token.id, token.log_probability)
                    | {"top_logprobs": [self._chance(*other) for other in token.alternatives]}
                    for _, token in piece.tokens
                ]
            }
        return {"index": index, place: said, "logprobs": logprobs, "finish_reason": piece.finish}

    def _chance(self, token: int, chance: float | None) -> dict[str, Any]:
        data = self._tokenizer.token_bytes(token)
        return {"token": token_text(data), "logprob": log_probability(chance), "bytes": list(data)}
