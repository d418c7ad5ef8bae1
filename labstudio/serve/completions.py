"""POST /v1/completions: continue texts."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from labkit.text import Tokenizer
from labstudio.serve.chances import log_probability, token_text
from labstudio.serve.documented import WRITING_ERRORS, streamed
from labstudio.serve.requests import CompletionRequest
from labstudio.serve.schemas import Completion
from labstudio.serve.service import Piece, Service

DEFAULT_TOKENS = 16


def completions_router(service: Service) -> APIRouter:
    """The operation, for one model."""
    router = APIRouter(tags=["text"])

    @router.post(
        "/v1/completions",
        summary="Continue texts",
        responses={200: streamed(Completion), **WRITING_ERRORS},
    )
    async def complete(asked: CompletionRequest, request: Request) -> Response:
        """Continue one or several prompts, each n times, to max_tokens, the end of the text or a stop string.

        A prompt must fit the model's context; the text that follows may outgrow it.
        """
        service.check_model(asked.model)
        service.check_bytes([each for each in asked.prompt if isinstance(each, str)], "prompt")
        encode = service.tokenizer.encode
        writing = await service.begin(
            asked,
            lambda: [encode(each) if isinstance(each, str) else each for each in asked.prompt],
            param="prompt",
            max_tokens=("max_tokens", asked.max_tokens or DEFAULT_TOKENS),
            logprobs=asked.logprobs,
        )
        form = CompletionForm(service.tokenizer, logprobs=asked.logprobs is not None)
        return await service.answer(request, asked, writing, form)

    return router


class CompletionForm:
    """Texts as /v1/completions writes them."""

    kinds = ("cmpl", "text_completion", "text_completion")

    def __init__(self, tokenizer: Tokenizer, *, logprobs: bool) -> None:
        self._tokenizer, self._logprobs = tokenizer, logprobs

    def opening(self, index: int) -> None:
        """Nothing comes before the text."""

    def part(self, index: int, piece: Piece) -> dict[str, Any]:
        """A piece of a text, or all of it."""
        logprobs = self._chances(piece) if self._logprobs else None
        return {"index": index, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish}

    whole = part

    def _chances(self, piece: Piece) -> dict[str, list[Any]]:
        return {
            "tokens": [self._text(token.id) for _, token in piece.tokens],
            "token_logprobs": [log_probability(token.log_probability) for _, token in piece.tokens],
            "top_logprobs": [
                {
                    self._text(other): log_probability(chance)
                    for other, chance in [(token.id, token.log_probability), *token.alternatives]
                }
                for _, token in piece.tokens
            ],
            "text_offset": [start for start, _ in piece.tokens],
        }

    def _text(self, token: int) -> str:
        return token_text(self._tokenizer.token_bytes(token))
