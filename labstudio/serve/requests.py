"""What requests look like: the source of the checks and of the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema

LARGEST_SEED = 2**63 - 1
LONGEST_STOP = 200
MOST_STOPS = 4

NOT_SUPPORTED = "Not supported: leave it out, or at its default."


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    if isinstance(value, str):
        value.encode()  # a lone surrogate raises UnicodeEncodeError, which is a ValueError
    return isinstance(value, str)


def _all(check: Any, values: Any) -> bool:
    return isinstance(values, list) and len(values) > 0 and all(map(check, values))


def _prompts(value: Any) -> list[str | list[int]]:
    """Any of the four forms as a list of prompts."""
    if _is_text(value) or _all(_is_id, value):
        return [value]
    if _all(_is_text, value) or _all(lambda each: _all(_is_id, each), value):
        return list(value)
    raise ValueError("expected a text, a list of texts, a list of token ids, or a list of such lists.")


def _stops(value: Any) -> tuple[str, ...]:
    stops = [] if value is None else value if isinstance(value, list) else [value]
    if len(stops) > MOST_STOPS or not all(_is_text(each) and 0 < len(each) <= LONGEST_STOP for each in stops):
        raise ValueError(f"expected at most {MOST_STOPS} texts of 1 to {LONGEST_STOP} characters.")
    return tuple(stops)


def _listed(items: dict[str, Any], **limits: int) -> dict[str, Any]:
    return {"type": "array", "items": items} | limits


_IDS = _listed({"type": "integer", "minimum": 0}, minItems=1)
_STOP = {"type": "string", "minLength": 1, "maxLength": LONGEST_STOP}
Prompts = Annotated[
    Sequence[str | list[int]],
    PlainValidator(_prompts),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                _listed({"type": "string"}, minItems=1),
                _IDS,
                _listed(_IDS, minItems=1),
            ]
        }
    ),
]
Stops = Annotated[
    tuple[str, ...],
    PlainValidator(_stops),
    WithJsonSchema({"anyOf": [_STOP, _listed(_STOP, maxItems=MOST_STOPS), {"type": "null"}]}),
]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Request):
    """What a stream says besides the text."""

    include_usage: bool = Field(False, description="Count the tokens in a last event before [DONE].")


class Sampling(_Request):
    """What completions and conversations share."""

    model: str = Field(description="Name of the model, as `GET /v1/models` lists it.", examples=["shipped"])
    temperature: float | None = Field(
        None,
        ge=0,
        le=2,
        description="Below 1 sharpens, above 1 flattens, 0 is greedy; no less than 0.001 else. Default: 1.",
    )
    top_p: float | None = Field(
        None, gt=0, le=1, description="Keep the smallest set of tokens whose probabilities sum to this."
    )
    top_k: int | None = Field(None, ge=1, description="labkit's own: keep only the likeliest tokens.")
    min_p: float | None = Field(
        None, ge=0, le=1, description="labkit's own: drop tokens less likely than this part of the likeliest."
    )
    repetition_penalty: float | None = Field(
        None,
        ge=0.1,
        le=10,
        description="labkit's own: above 1, tokens already in the text become less likely.",
    )
    n: int | None = Field(None, ge=1, le=128, description="Texts to write for each prompt. Default: 1.")
    stop: Stops = Field(
        (), validate_default=False, description="A text ends before the first of these that it comes to."
    )
    seed: int | None = Field(
        None,
        ge=0,
        le=LARGEST_SEED,
        description="The same seed gives the same text; text i draws with seed + i. When not given, a random "
        "one, which the answer tells.",
    )
    stream: bool | None = Field(None, description="Send the text as it is written, as server-sent events.")
    stream_options: StreamOptions | None = Field(None, description="Only with stream.")
    user: str | None = Field(None, description="Accepted and ignored.")
    frequency_penalty: float | None = Field(None, ge=0, le=0, description=NOT_SUPPORTED)
    presence_penalty: float | None = Field(None, ge=0, le=0, description=NOT_SUPPORTED)
    logit_bias: dict[str, float] | None = Field(None, max_length=0, description=NOT_SUPPORTED)


class CompletionRequest(Sampling):
    """A text to continue."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "shipped", "prompt": "ROMEO.", "max_tokens": 40, "seed": 1, "stop": "\n\n"}
            ]
        }
    )

    prompt: Prompts = Field(description="Text to continue, several of them, or token ids in their place.")
    max_tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens to write at most, per text. Default: 16. A text may outgrow the context.",
    )
    logprobs: int | None = Field(
        None, ge=0, le=5, description="Log-probabilities of each token and of so many of the likeliest."
    )
    best_of: int | None = Field(None, ge=1, le=1, description=NOT_SUPPORTED)
    echo: Literal[False] | None = Field(None, description=NOT_SUPPORTED)
    suffix: None = Field(None, description=NOT_SUPPORTED)


class Message(_Request):
    """What was said in a conversation."""

    role: Literal["system", "user", "assistant"] = Field(description="Who speaks.")
    content: str = Field(description="What is said: text without the tokenizer's special tokens.")


class TextFormat(_Request):
    """Plain text."""

    type: Literal["text"] = Field(description="There is no other format.")


class ChatRequest(Sampling):
    """A conversation to answer."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "smollm2", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 60}
            ]
        }
    )

    messages: list[Message] = Field(
        min_length=1, max_length=1000, fail_fast=True, description="The conversation so far."
    )
    max_tokens: int | None = Field(
        None, ge=1, description="Tokens to write at most. Default: what the server allows."
    )
    max_completion_tokens: int | None = Field(None, ge=1, description="The same; it wins over max_tokens.")
    logprobs: bool | None = Field(None, description="Log-probabilities of each token.")
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="And of so many of the likeliest; only with logprobs."
    )
    response_format: TextFormat | None = Field(None, description="Text, nothing else.")
    tools: list[Any] | None = Field(None, max_length=0, description=NOT_SUPPORTED)
    tool_choice: Literal["none", "auto"] | None = Field(None, description=NOT_SUPPORTED)


SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "n", "stop")
