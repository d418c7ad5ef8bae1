"""Continue prompts of text: whole characters only, and an end at stop strings."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from labkit.config import SampleConfig
from labkit.generation.decode import Prompt, decode, prompt_rows, sample_config
from labkit.model import GPT
from labkit.text import Tokenizer

Finish = Literal["length", "eos", "stop"]


@dataclass(frozen=True)
class Token:
    """One token of a continuation, as soon as it is drawn."""

    number: int
    """Which continuation it belongs to."""
    id: int
    text: str
    """What can be shown now: nothing while a character, or what may become a stop string, is incomplete."""
    log_probability: float | None
    """Natural logarithm of what the model gave it, before any filter; None unless asked for."""
    alternatives: tuple[tuple[int, float], ...]
    """The likeliest ids and their log-probabilities, as many as asked for."""
    finish: Finish | None
    """Why the continuation ends here, if it does: max_new_tokens, the end-of-text token, a stop string."""


@dataclass(repr=False)
class Completion:
    """One continuation of a prompt, without the prompt."""

    text: str = ""
    """Ends before a stop string and before the end-of-text token."""
    tokens: list[Token] = field(default_factory=list)
    """Every token drawn, also those of which the text shows nothing."""

    @property
    def finish(self) -> Finish | None:
        """Why it ended."""
        return self.tokens[-1].finish if self.tokens else None

    def __repr__(self) -> str:
        shown = self.text if len(self.text) <= 60 else self.text[:59] + "…"
        return f"Completion({shown!r}, {len(self.tokens)} tokens, finish={self.finish!r})"


def complete(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: str | Sequence[str | Prompt],
    config: SampleConfig | None = None,
    *,
    seed: int = 0,
    logprobs: int | None = None,
    **settings: Any,
) -> list[Completion]:
    """Continue one or several prompts, texts or lists of ids, each config.n times.

    Completion i * n + j is the j-th of prompt i.  Fields of config can be given by name, as for `generate`.
    logprobs, and what raises: see `stream_tokens`.
    """
    config = sample_config(config, settings, "complete")
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    completions = [Completion() for _ in range(len(prompts) * config.n)]
    for token in stream_tokens(model, tokenizer, prompts, config, seed=seed, logprobs=logprobs):
        completions[token.number].text += token.text
        completions[token.number].tokens.append(token)
    return completions


def stream(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str | Prompt,
    config: SampleConfig | None = None,
    *,
    seed: int = 0,
    **settings: Any,
) -> Iterator[str]:
    """Continue a prompt, yielding the text piece by piece as it is written.

    Fields of config can be given by name, as for `generate`.
    Raises ValueError for config.n above 1, and as `stream_tokens` does.
    """
    config = sample_config(config, settings, "stream")
    if config.n > 1:
        raise ValueError(f"stream: writes one text; for n={config.n} call complete or stream_tokens.")
    tokens = stream_tokens(model, tokenizer, [prompt], config, seed=seed)
    return (token.text for token in tokens if token.text)


def stream_tokens(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: str | Sequence[str | Prompt],
    config: SampleConfig | None = None,
    *,
    seed: int = 0,
    logprobs: int | None = None,
) -> Iterator[Token]:
    """Continue one or several prompts, texts or lists of ids, each config.n times, token by token.

    A text ends at config.eos_id, by default the tokenizer's, and before the first of config.stop that is
    complete in the new text.  Bytes that make no whole character yet are held back, and so is what may
    still become a stop string; an unfinished character at the very end is left out.
    logprobs: None for no log-probabilities, else how many alternatives to name beside the drawn token.
    Raises ValueError for an empty prompt, text that the tokenizer cannot encode, a stop string that the
    model can never write, or logprobs outside 0 to the vocabulary.
    """
    config = sample_config(config, {}, "stream_tokens")
    if logprobs is not None and not 0 <= logprobs <= model.config.vocab_size:
        raise ValueError(f"logprobs={logprobs} must be from 0 to {model.config.vocab_size}, the vocabulary.")
    if config.eos_id is None:
        config = replace(config, eos_id=tokenizer.eos_id)
    for stop in config.stop:
        try:
            tokenizer.encode(stop)
        except ValueError as error:
            raise ValueError(f"stop={stop!r} can never appear: {error}") from error
    prompts = [prompts] if isinstance(prompts, str) else prompts
    rows = prompt_rows(model, [_encoded(tokenizer, prompt) for prompt in prompts])
    return _tokens(model, tokenizer, rows, config, seed, logprobs)


def _encoded(tokenizer: Tokenizer, prompt: str | Prompt) -> Prompt:
    if isinstance(prompt, str) and not prompt:
        raise ValueError(
            "The prompt is empty; give at least one character, for example a line break, after which the "
            "model starts anew."
        )
    if isinstance(prompt, bytes):
        raise TypeError("prompt: text must be a str, not bytes.")
    return tokenizer.encode(prompt) if isinstance(prompt, str) else prompt


def _tokens(
    model: GPT,
    tokenizer: Tokenizer,
    rows: list[Tensor],
    config: SampleConfig,
    seed: int,
    logprobs: int | None,
) -> Iterator[Token]:
    texts = [_GrowingText(tokenizer, config.stop) for _ in range(len(rows) * config.n)]
    left = [config.max_new_tokens] * len(texts)
    for step in decode(model, rows, config, seed):
        log_probabilities = None if logprobs is None else step.logits.log_softmax(-1)
        for row, (number, token) in enumerate(zip(step.texts, step.tokens, strict=True)):
            left[number] -= 1
            finish: Finish | None = "length" if left[number] == 0 else None
            if token == config.eos_id:
                finish, text = "eos", texts[number].end()
            else:
                text = texts[number].add(token)
                if texts[number].stopped:
                    finish = "stop"
                    step.ended.add(number)
                elif finish:
                    text += texts[number].end()
            if log_probabilities is None:
                yield Token(number, token, text, None, (), finish)
            else:
                likeliest = _likeliest(log_probabilities[row], logprobs or 0)
                yield Token(number, token, text, float(log_probabilities[row, token]), likeliest, finish)


def _likeliest(log_probabilities: Tensor, count: int) -> tuple[tuple[int, float], ...]:
    if not count:
        return ()
    best = torch.topk(log_probabilities, count)
    return tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))


class _GrowingText:
    """Text from tokens: gives out what is certain, and keeps what may still change or be cut off."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...]) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.characters = codecs.getincrementaldecoder("utf-8")("replace")
        self.held, self.stopped = "", False

    def add(self, token: int) -> str:
        self.held += self.characters.decode(self.tokenizer.token_bytes(token))
        found = [(at + len(stop), at) for stop in self.stop if (at := self.held.find(stop)) >= 0]
        if found:  # the one that ends first: how the tokens cut the text must not matter
            self.stopped = True
            return self.held[: min(found)[1]]
        certain = len(self.held) - max((_overlap(self.held, stop) for stop in self.stop), default=0)
        given, self.held = self.held[:certain], self.held[certain:]
        return given

    def end(self) -> str:
        return self.held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text with which the stop string begins."""
    return next(size for size in range(min(len(text), len(stop) - 1), -1, -1) if text.endswith(stop[:size]))
