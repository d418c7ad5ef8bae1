"""From a checked request to the texts it asks for, and back to an answer, at once or piece by piece."""

from __future__ import annotations

import asyncio
import codecs
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar, cast

from starlette.requests import Request
from starlette.responses import Response

from labkit.config import SampleConfig
from labkit.generation import Token, stream_tokens
from labkit.model import GPT
from labkit.text import Tokenizer
from labstudio.serve.config import ServeConfig
from labstudio.serve.errors import ApiError, wrong
from labstudio.serve.replies import EventStream, JSONReply, sse, while_connected
from labstudio.serve.requests import SAMPLING, Sampling
from labstudio.serve.scheduler import Job, Scheduler

T = TypeVar("T")

LEAST_TEMPERATURE = 1e-3
"""Dividing by less could make logits infinite."""


@dataclass(frozen=True)
class Piece:
    """What is new of a text: characters, the tokens that begin in them (and where), and why it ends."""

    text: str
    tokens: list[tuple[int, Token]]
    finish: str | None


class Growing:
    """A text in the making: which tokens belong to the characters that a client has been told of."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._read = self._told = 0
        self._waiting: list[tuple[int, Token]] = []

    def add(self, token: Token) -> Piece | None:
        """What to tell now.  Tokens of which the text shows nothing, such as its end, are never told."""
        self._waiting.append((self._read, token))
        self._read += len(self._characters.decode(self._tokenizer.token_bytes(token.id)))
        self._told += len(token.text)
        if not token.text and token.finish is None:
            return None
        tokens = [(start, each) for start, each in self._waiting if start < self._told]
        self._waiting = self._waiting[len(tokens) :]
        return Piece(token.text, tokens, "stop" if token.finish == "eos" else token.finish)


def joined(pieces: Sequence[Piece]) -> Piece:
    """All pieces of a text as one."""
    text = "".join(piece.text for piece in pieces)
    return Piece(text, [token for piece in pieces for token in piece.tokens], pieces[-1].finish)


class Form(Protocol):
    """How an answer is written: as completed texts, or as answers to a conversation."""

    kinds: tuple[str, str, str]
    """Beginning of its id; its kind when whole; the kind of its parts in a stream."""

    def opening(self, index: int) -> dict[str, Any] | None:
        """What a stream says of a text before its first piece."""

    def part(self, index: int, piece: Piece) -> dict[str, Any]:
        """A piece of a text."""

    def whole(self, index: int, piece: Piece) -> dict[str, Any]:
        """A whole text."""


@dataclass
class Writing:
    """The texts that a request asked for, while the model writes them."""

    job: Job
    tokenizer: Tokenizer
    texts: int
    seed: int
    prompt_tokens: int
    new_tokens: int = 0

    async def pieces(self) -> AsyncGenerator[tuple[int, Piece]]:
        """Pieces of the texts as they come, and which text each belongs to.  Raises ApiError."""
        growing = [Growing(self.tokenizer) for _ in range(self.texts)]
        try:
            async for token in self.job:
                self.new_tokens += 1
                if piece := growing[token.number].add(token):
                    yield token.number, piece
        finally:
            self.job.close()

    def usage(self) -> dict[str, int]:
        """Tokens read and written so far."""
        total = self.prompt_tokens + self.new_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.new_tokens,
            "total_tokens": total,
        }


class Service:
    """A model and who waits for it."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, config: ServeConfig, name: str) -> None:
        self.model, self.tokenizer, self.config, self.name = model.eval(), tokenizer, config, name
        self.scheduler = Scheduler(config.active, config.waiting)
        self.created = int(time.time())
        self.followers = 0
        longest = max(len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size))
        self._most_bytes = longest * model.config.context_length

    @property
    def is_chat(self) -> bool:
        """Whether the model was made for conversations."""
        return getattr(self.tokenizer, "chat_template", None) is not None

    def check_model(self, name: str, param: str | None = "model") -> None:
        """Raise ApiError for any name but that of the one model there is."""
        if name != self.name:
            raise ApiError(
                404, f"There is no model {name[:200]!r}; this server has {self.name!r}.",
                param=param, code="model_not_found",
            )  # fmt: skip

    def check_bytes(self, texts: Sequence[str], param: str) -> None:
        """Raise ApiError for texts so long that no tokenizing is needed to know that they do not fit."""
        if any(len(text.encode()) > self._most_bytes for text in texts):
            raise self._too_long(f"more than {self.model.config.context_length}", param)

    def _too_long(self, tokens: str, param: str) -> ApiError:
        context = self.model.config.context_length
        return wrong(
            param,
            f"the model reads at most {context} tokens, but these are {tokens}. Shorten it.",
            "context_length_exceeded",
        )

    async def begin(
        self,
        asked: Sampling,
        encode: Callable[[], list[list[int]]],
        *,
        param: str,
        max_tokens: tuple[str, int],
        logprobs: int | None,
    ) -> Writing:
        """Queue a request.  Raises ApiError, naming what is wrong.

        encode: gives the prompts as ids, in a thread of its own; param: where they come from.
        max_tokens: the parameter that sets it, and its value.
        """
        if max_tokens[1] > self.config.max_tokens:
            raise wrong(
                max_tokens[0],
                f"{max_tokens[1]} is more than this server's limit of {self.config.max_tokens}.",
            )
        if asked.stream_options is not None and not asked.stream:
            raise wrong("stream_options", "goes with stream=true.")
        if 0 < (asked.temperature or 0) < LEAST_TEMPERATURE:
            raise wrong("temperature", f"{asked.temperature:g} is too close to 0, which is greedy.")
        vocabulary = self.model.config.vocab_size
        if (asked.top_k or 0) > vocabulary:
            raise wrong("top_k", f"{asked.top_k} is more than the {vocabulary} tokens that the model knows.")
        given = {name: value for name in SAMPLING if (value := getattr(asked, name)) is not None}
        settings = SampleConfig(max_new_tokens=max_tokens[1], **given)
        seed = secrets.randbelow(2**32) if asked.seed is None else asked.seed

        def prepare() -> tuple[int, int, Generator[Token]]:
            ids = _or_wrong(param, encode)
            self._check_prompts(ids, param, settings.n)
            for stop in settings.stop:
                _or_wrong("stop", partial(self.tokenizer.encode, stop))
            wanted = None if logprobs is None else min(logprobs, vocabulary)
            tokens = stream_tokens(self.model, self.tokenizer, ids, settings, seed=seed, logprobs=wanted)
            return len(ids) * settings.n, sum(map(len, ids)), cast(Generator[Token], tokens)

        texts, read, tokens = await asyncio.to_thread(prepare)
        job = self.scheduler.submit(tokens, self.config.generate_seconds)
        return Writing(job, self.tokenizer, texts, seed, read)

    def _check_prompts(self, prompts: list[list[int]], param: str, n: int) -> None:
        if len(prompts) * n > self.config.max_texts:
            raise wrong(
                "n",
                f"{n} for {len(prompts)} prompts is more than {self.config.max_texts}, this "
                "server's limit of texts per request.",
            )
        vocabulary = self.model.config.vocab_size
        for ids in prompts:
            if len(ids) > self.model.config.context_length:
                raise self._too_long(str(len(ids)), param)
            if not ids:
                raise wrong(param, "is empty; give at least one character, for example a line break.")
            if outside := [token for token in ids if not 0 <= token < vocabulary]:
                raise wrong(
                    param,
                    f"id {str(outside[0])[:40]} is not in 0 .. {vocabulary - 1}, the model's vocabulary.",
                )

    async def answer(self, request: Request, asked: Sampling, writing: Writing, form: Form) -> Response:
        """Write to a client: all at once, or as server-sent events."""
        prefix, whole, part = form.kinds
        head: dict[str, Any] = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": part if asked.stream else whole,
        }
        head |= {"created": int(time.time()), "model": self.name, "seed": writing.seed}
        pieces = writing.pieces()
        if not asked.stream:
            texts: list[list[Piece]] = [[] for _ in range(writing.texts)]

            async def collect() -> bool:
                async for index, piece in pieces:
                    texts[index].append(piece)
                return True

            await _finished(request, collect(), pieces)
            choices = [form.whole(index, joined(each)) for index, each in enumerate(texts)]
            return JSONReply(head | {"choices": choices, "usage": writing.usage()})

        async def first() -> tuple[int, Piece]:
            return await anext(pieces)

        begun = await _finished(request, first(), pieces)  # what goes wrong before it has a status of its own
        usage = asked.stream_options is not None and asked.stream_options.include_usage
        return EventStream(_events(head, begun, pieces, writing, form, usage))


async def _finished(request: Request, work: Any, pieces: AsyncGenerator[Any]) -> Any:
    """What the work returns.  Whatever stops it, the model stops too."""
    result = None
    try:
        result = await while_connected(request.receive, work)
    finally:
        if result is None:
            await pieces.aclose()
    if result is None:
        raise ApiError(408, "The client went away.", code="client_gone")
    return result


async def _events(
    head: dict[str, Any],
    begun: tuple[int, Piece],
    pieces: AsyncGenerator[tuple[int, Piece]],
    writing: Writing,
    form: Form,
    usage: bool,
) -> AsyncGenerator[bytes]:
    common: dict[str, Any] = head | ({"usage": None} if usage else {})
    try:
        for index in range(writing.texts):
            if opening := form.opening(index):
                yield sse(common | {"choices": [opening]})
        yield sse(common | {"choices": [form.part(*begun)]})
        async for index, piece in pieces:
            yield sse(common | {"choices": [form.part(index, piece)]})
        if usage:
            yield sse(head | {"choices": [], "usage": writing.usage()})
        yield sse("[DONE]")
    except ApiError as error:
        yield sse(error.content())
    finally:
        await pieces.aclose()


def _or_wrong(param: str, work: Callable[[], T]) -> T:
    """What the work returns; its ValueError as an answer that names the parameter."""
    try:
        return work()
    except ValueError as error:
        raise wrong(param, str(error)) from error
