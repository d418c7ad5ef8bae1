"""One model and its generation: from a checked request to an answer, at once or as a stream."""

from __future__ import annotations

import asyncio
import codecs
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar, cast

from sse_starlette import EventSourceResponse

from labkit.config import SampleConfig
from labkit.generation import Token, stream_tokens
from labkit.model import GPT
from labkit.text import Tokenizer
from labstudio.serve.config import ServeConfig
from labstudio.serve.scheduler import Job, Scheduler
from labstudio.serve.schemas import ApiError, Sampling, invalid

T = TypeVar("T")

LEAST_TEMPERATURE = 1e-3
"""Dividing by less could make logits infinite."""

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "n")


@dataclass(frozen=True)
class Delta:
    """The next characters of a text, the tokens that begin in them (with their offsets), and why it ends."""

    text: str
    tokens: list[tuple[int, Token]]
    finish: str | None


class DeltaBuilder:
    """Assigns tokens to the characters of a growing text: one may hold a part of a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._decoded = self._sent = 0  # characters
        self._pending: list[tuple[int, Token]] = []

    def add(self, token: Token) -> Delta | None:
        """What to send now.  Tokens that add nothing to the text, such as its end, are left out."""
        self._pending.append((self._decoded, token))
        self._decoded += len(self._decoder.decode(self._tokenizer.token_bytes(token.id)))
        self._sent += len(token.text)
        if not token.text and token.finish is None:
            return None
        tokens = [(start, each) for start, each in self._pending if start < self._sent]
        self._pending = self._pending[len(tokens) :]
        return Delta(token.text, tokens, "stop" if token.finish == "eos" else token.finish)


@dataclass
class Generation:
    """The texts of one request, while the model writes them."""

    job: Job
    tokenizer: Tokenizer
    n_texts: int
    seed: int
    prompt_tokens: int
    completion_tokens: int = 0

    async def deltas(self) -> AsyncGenerator[tuple[int, Delta]]:
        """Number of a text and its next delta, as they come.  Raises ApiError."""
        builders = [DeltaBuilder(self.tokenizer) for _ in range(self.n_texts)]
        try:
            async for token in self.job:
                self.completion_tokens += 1
                if delta := builders[token.number].add(token):
                    yield token.number, delta
        finally:
            self.job.close()

    def usage(self) -> dict[str, int]:
        """Tokens read and drawn so far."""
        read, drawn = self.prompt_tokens, self.completion_tokens
        return {"prompt_tokens": read, "completion_tokens": drawn, "total_tokens": read + drawn}


class Service:
    """A model and the requests that wait for it."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, config: ServeConfig, name: str) -> None:
        self.model, self.tokenizer, self.config, self.name = model.eval(), tokenizer, config, name
        self.scheduler = Scheduler(config.active, config.waiting)
        self.created = int(time.time())
        self.followers = 0
        longest = max(len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size))
        self._max_bytes = longest * model.config.context_length

    @property
    def is_chat(self) -> bool:
        """Whether the model was made for conversations."""
        return getattr(self.tokenizer, "chat_template", None) is not None

    def check_model(self, name: str, param: str | None = "model") -> None:
        """Raise ApiError for any name but that of the one model there is."""
        if name != self.name:
            message = f"There is no model {name[:200]!r}; this server has {self.name!r}."
            raise ApiError(404, message, param=param, code="model_not_found")

    def check_bytes(self, texts: Sequence[str], param: str) -> None:
        """Raise ApiError for texts so long that no tokenizing is needed to know that they do not fit."""
        if any(len(text.encode()) > self._max_bytes for text in texts):
            raise self._too_long(f"more than {self.model.config.context_length}", param)

    def _too_long(self, tokens: str, param: str) -> ApiError:
        context = self.model.config.context_length
        message = f"the model reads at most {context} tokens, but these are {tokens}. Shorten it."
        return invalid(param, message, "context_length_exceeded")

    async def begin(
        self,
        asked: Sampling,
        encode: Callable[[], list[list[int]]],
        *,
        param: str,
        max_tokens: tuple[str, int],
        logprobs: int | None,
    ) -> Generation:
        """Queue a request.  Raises ApiError, naming what is wrong.

        encode: gives the prompts as ids, in a thread of its own; param: where they come from.
        max_tokens: the parameter that sets it, and its value.
        """
        named, limit = max_tokens
        if limit > self.config.max_tokens:
            raise invalid(named, f"{limit} is more than this server's limit of {self.config.max_tokens}.")
        if asked.stream_options is not None and not asked.stream:
            raise invalid("stream_options", "goes with stream=true.")
        if 0 < (asked.temperature or 0) < LEAST_TEMPERATURE:
            raise invalid("temperature", f"{asked.temperature:g} is too close to 0, which is greedy.")
        vocab_size = self.model.config.vocab_size
        if (asked.top_k or 0) > vocab_size:
            raise invalid("top_k", f"{asked.top_k} is more than the model's {vocab_size} tokens.")
        given = {name: value for name in _SAMPLING if (value := getattr(asked, name)) is not None}
        settings = SampleConfig(max_new_tokens=limit, stop=asked.stops, **given)
        seed = secrets.randbelow(2**32) if asked.seed is None else asked.seed

        def prepare() -> tuple[int, int, Generator[Token]]:
            ids = _checked(param, encode)
            self._check_prompts(ids, param, settings.n)
            for stop in settings.stop:
                _checked("stop", partial(self.tokenizer.encode, stop))
            top = None if logprobs is None else min(logprobs, vocab_size)
            tokens = stream_tokens(self.model, self.tokenizer, ids, settings, seed=seed, logprobs=top)
            return len(ids) * settings.n, sum(map(len, ids)), cast(Generator[Token], tokens)

        n_texts, prompt_tokens, tokens = await asyncio.to_thread(prepare)
        job = self.scheduler.submit(tokens, self.config.generate_seconds)
        return Generation(job, self.tokenizer, n_texts, seed, prompt_tokens)

    def _check_prompts(self, prompts: list[list[int]], param: str, n: int) -> None:
        most, vocab_size = self.config.max_texts, self.model.config.vocab_size
        if len(prompts) * n > most:
            raise invalid(
                "n", f"{n} for {len(prompts)} prompts is more than {most}, this server's limit of texts."
            )
        for ids in prompts:
            if len(ids) > self.model.config.context_length:
                raise self._too_long(str(len(ids)), param)
            if not ids:
                raise invalid(param, "is empty; give at least one character, for example a line break.")
            if outside := [token for token in ids if not 0 <= token < vocab_size]:
                raise invalid(
                    param, f"id {str(outside[0])[:40]} is not in 0 .. {vocab_size - 1}, the vocabulary."
                )

    def event_stream(self, events: AsyncGenerator[dict[str, str]]) -> EventSourceResponse:
        """Events as a response that pings, and that stops when the client goes away or does not read."""
        return EventSourceResponse(
            events,
            sep="\n",
            send_timeout=self.config.stall_seconds,
            shutdown_grace_period=self.config.grace_seconds + 1,  # the scheduler ends streams with an error
        )


def _checked(param: str, work: Callable[[], T]) -> T:
    """What the work returns; its ValueError as an error that names the parameter."""
    try:
        return work()
    except ValueError as error:
        raise invalid(param, str(error)) from error
