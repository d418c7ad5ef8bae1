"""What requests, replies and errors look like: the source of the checks and of the documentation."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import HTTPException
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, WrapValidator
from starlette.responses import JSONResponse

LARGEST_SEED = 2**63 - 1
LONGEST_STOP = 200
MOST_STOPS = 4

NOT_SUPPORTED = "Not supported: leave it out, or at its default."


# Requests


def _encodable(text: str) -> str:
    text.encode()  # a lone surrogate raises UnicodeEncodeError, which is a ValueError
    return text


def _expected(what: str) -> WrapValidator:
    """One error for a union, instead of one for each of its members."""

    def validate(value: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(f"expected {what}") from None

    return WrapValidator(validate)


Text = Annotated[str, AfterValidator(_encodable)]
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]
Prompt = Annotated[
    Text
    | Annotated[list[Text], Field(min_length=1, fail_fast=True)]
    | Ids
    | Annotated[list[Ids], Field(min_length=1, fail_fast=True)],
    _expected("a text, a list of texts, a list of token ids, or a list of such lists"),
]
StopString = Annotated[Text, Field(min_length=1, max_length=LONGEST_STOP)]
Stop = Annotated[
    StopString | Annotated[list[StopString], Field(max_length=MOST_STOPS, fail_fast=True)] | None,
    _expected(f"at most {MOST_STOPS} texts of 1 to {LONGEST_STOP} characters"),
]


def _with_example(**fields: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [fields]})


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Request):
    """What a stream says besides the text."""

    include_usage: bool = Field(False, description="Count the tokens in a last event before [DONE].")


class Sampling(_Request):
    """What completions and conversations share."""

    model: str = Field(description="Name of the model, as `GET /v1/models` lists it.", examples=["shipped"])
    temperature: float | None = Field(
        None, ge=0, le=2, description="0 is greedy; else from 0.001: below 1 sharpens. Default: 1."
    )
    top_p: float | None = Field(None, gt=0, le=1, description="Keep the likeliest that add up to this.")
    top_k: int | None = Field(None, ge=1, description="labkit's own: keep only the likeliest tokens.")
    min_p: float | None = Field(
        None, ge=0, le=1, description="labkit's own: drop tokens less likely than this part of the likeliest."
    )
    repetition_penalty: float | None = Field(
        None, ge=0.1, le=10, description="labkit's own: above 1, tokens of the text become less likely."
    )
    n: int | None = Field(None, ge=1, le=128, description="Texts to write for each prompt. Default: 1.")
    stop: Stop = Field(None, description="A text ends before the first of these that it comes to.")
    seed: int | None = Field(
        None,
        ge=0,
        le=LARGEST_SEED,
        description="The same seed gives the same text; text i draws with seed + i.",
    )
    stream: bool | None = Field(None, description="Send the text as it is written, as server-sent events.")
    stream_options: StreamOptions | None = Field(None, description="Only with stream.")
    user: str | None = Field(None, description="Accepted and ignored.")
    frequency_penalty: float | None = Field(None, ge=0, le=0, description=NOT_SUPPORTED)
    presence_penalty: float | None = Field(None, ge=0, le=0, description=NOT_SUPPORTED)
    logit_bias: dict[str, float] | None = Field(None, max_length=0, description=NOT_SUPPORTED)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class CompletionRequest(Sampling):
    """A text to continue."""

    model_config = _with_example(model="shipped", prompt="ROMEO.", max_tokens=40, seed=1, stop="\n\n")

    prompt: Prompt = Field(description="Text to continue, several of them, or token ids in their place.")
    max_tokens: int | None = Field(None, ge=1, description="Tokens to write at most, per text. Default: 16.")
    logprobs: int | None = Field(None, ge=0, le=5, description="Of each token and so many of the likeliest.")
    best_of: int | None = Field(None, ge=1, le=1, description=NOT_SUPPORTED)
    echo: Literal[False] | None = Field(None, description=NOT_SUPPORTED)
    suffix: None = Field(None, description=NOT_SUPPORTED)

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or as ids."""
        prompt: Any = self.prompt
        return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt


class Message(_Request):
    """What was said in a conversation."""

    role: Literal["system", "user", "assistant"] = Field(description="Who speaks.")
    content: Text = Field(description="What is said: text without the tokenizer's special tokens.")


class TextFormat(_Request):
    """Plain text."""

    type: Literal["text"] = Field(description="There is no other format.")


class ChatRequest(Sampling):
    """A conversation to answer."""

    model_config = _with_example(
        model="smollm2", messages=[{"role": "user", "content": "Hello!"}], max_tokens=60
    )

    messages: list[Message] = Field(
        min_length=1, max_length=1000, fail_fast=True, description="The conversation so far."
    )
    max_tokens: int | None = Field(None, ge=1, description="Tokens to write. Default: the server's limit.")
    max_completion_tokens: int | None = Field(None, ge=1, description="The same; it wins over max_tokens.")
    logprobs: bool | None = Field(None, description="Log-probabilities of each token.")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="And of so many of the likeliest.")
    response_format: TextFormat | None = Field(None, description="Text, nothing else.")
    tools: list[Any] | None = Field(None, max_length=0, description=NOT_SUPPORTED)
    tool_choice: Literal["none", "auto"] | None = Field(None, description=NOT_SUPPORTED)


# Replies

Finish = Literal["stop", "length"]


class Usage(BaseModel):
    """Tokens that were read and written."""

    prompt_tokens: int = Field(description="Tokens of all prompts; each counts once, whatever n is.")
    completion_tokens: int = Field(description="Tokens drawn, also those that end a text.")
    total_tokens: int = Field(description="Both.")


class CompletionLogprobs(BaseModel):
    """The tokens of which the text shows something. Natural logarithms, before any filter."""

    tokens: list[str] = Field(description="Their texts; bytes that are no whole character as bytes:\\xNN.")
    token_logprobs: list[float] = Field(description="What the model gave each.")
    top_logprobs: list[dict[str, float]] = Field(description="The likeliest ones, and the one drawn.")
    text_offset: list[int] = Field(description="Where each begins in the text, in characters.")


class CompletionChoice(BaseModel):
    """One text."""

    index: int = Field(description="Its number: prompt number * n + number within the prompt.")
    text: str = Field(description="Without the prompt and the stop string; in a stream, the next part.")
    logprobs: CompletionLogprobs | None = Field(description="null unless asked for.")
    finish_reason: Finish | None = Field(description="stop: a stop string or the end. length: max_tokens.")


class _Generated(BaseModel):
    id: str = Field(description="Name of this answer.", examples=["cmpl-5d0c"])
    created: int = Field(description="When, in seconds since 1970.")
    model: str = Field(description="Which model wrote.", examples=["shipped"])
    seed: int = Field(description="Ask with this seed to get the same texts again.")


class Completion(_Generated):
    """Continued texts; with stream, each event holds one of these with the next part of one text."""

    object: Literal["text_completion"] = Field(description="What this is.")
    choices: list[CompletionChoice] = Field(description="The texts.")
    usage: Usage | None = Field(None, description="Tokens; in a stream in a last event, if asked for.")


class TokenLogprob(BaseModel):
    """A token and its log-probability."""

    token: str = Field(description="Its text; bytes that are no whole character as bytes:\\xNN.")
    logprob: float = Field(description="Natural logarithm of what the model gave it, before any filter.")
    bytes: list[int] = Field(description="Its bytes.")


class DrawnToken(TokenLogprob):
    """A token that was drawn."""

    top_logprobs: list[TokenLogprob] = Field(description="The likeliest ones at its place.")


class ChatLogprobs(BaseModel):
    """The tokens of which the answer shows something."""

    content: list[DrawnToken] = Field(description="One for each token.")


class Answer(BaseModel):
    """What the model says."""

    role: Literal["assistant"] = Field(description="Who speaks.")
    content: str = Field(description="The answer.")


class ChatChoice(BaseModel):
    """One answer."""

    index: int = Field(description="Its number.")
    message: Answer = Field(description="What the model says; in a stream, delta in its place.")
    logprobs: ChatLogprobs | None = Field(description="null unless asked for.")
    finish_reason: Finish = Field(description="stop: a stop string or the end. length: max_tokens.")


class ChatCompletion(_Generated):
    """Answers to a conversation; with stream, events of object chat.completion.chunk with a delta each."""

    object: Literal["chat.completion"] = Field(description="What this is.")
    choices: list[ChatChoice] = Field(description="The answers.")
    usage: Usage = Field(description="Tokens counted.")


class ModelCard(BaseModel):
    """A model that can be asked."""

    id: str = Field(description="Its name, for the field `model` of requests.", examples=["shipped"])
    object: Literal["model"] = Field(description="What this is.")
    created: int = Field(description="When the server was started, in seconds since 1970.")
    owned_by: Literal["labkit"] = Field(description="Who serves it.")
    context_length: int = Field(description="Tokens that it can read at once.")
    chat: bool = Field(description="Whether it was made for conversations.")


class _List(BaseModel):
    object: Literal["list"] = Field(description="What this is.")


class ModelList(_List):
    """The models that can be asked: there is one."""

    data: list[ModelCard] = Field(description="The models.")


class RunSummary(BaseModel):
    """How far a training run has come. Losses in nats per token; null where nothing was measured."""

    id: str = Field(description="The run's name.", examples=["first"])
    state: str = Field(description='finished, "running?" (a recent row), stopped, or unreadable: why.')
    parameters: int | None = Field(description="Size of the model.")
    step: int | None = Field(description="Steps taken.")
    total_steps: int | None = Field(description="Steps in all.")
    tokens: int | None = Field(description="Tokens trained on.")
    seconds: float | None = Field(description="Time trained.")
    val_loss: float | None = Field(description="Last held-out loss.")
    perplexity: float | None = Field(description="Its perplexity.")
    bits_per_byte: float | None = Field(description="The same per byte of text.")
    best_val_loss: float | None = Field(description="Lowest held-out loss.")
    best_perplexity: float | None = Field(description="Its perplexity.")
    started: str | None = Field(description="When, local time in ISO 8601.")


class RunList(_List):
    """All runs, oldest first."""

    data: list[RunSummary] = Field(description="The runs.")


class RunDetails(RunSummary):
    """A run and what it was started with."""

    config: dict[str, Any] | None = Field(description="Its config.json; null where that is damaged.")


class Sample(BaseModel):
    """What a model wrote while it was trained."""

    step: int | None = Field(description="After how many steps.")
    prompt: str | None = Field(description="What it continued.")
    text: str | None = Field(description="What it wrote.")


class SampleList(_List):
    """Samples of a run, oldest first."""

    data: list[Sample] = Field(description="The samples.")


class Health(BaseModel):
    """The server answers."""

    status: Literal["ok"] = Field(description="ok.")


class Problem(BaseModel):
    """What is wrong."""

    message: str = Field(description="For people.")
    type: str = Field(description="Kind of error.", examples=["invalid_request_error"])
    param: str | None = Field(description="The parameter that is wrong.", examples=["max_tokens"])
    code: str | None = Field(description="For programs.", examples=["invalid_value"])


class ErrorReply(BaseModel):
    """An error in OpenAI's form."""

    error: Problem = Field(description="What is wrong.")


# Errors, and how all of this is sent


class ApiError(HTTPException):
    """An error in the form that OpenAI's clients expect.

    param: the parameter that is wrong, None where it is none.  code: a short name for programs.
    """

    def __init__(
        self,
        status_code: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status_code, message, headers)
        self.param, self.code = param, code

    def content(self) -> dict[str, Any]:
        """The body, as ErrorReply describes it."""
        kinds = {401: "authentication_error", 408: "timeout_error", 429: "rate_limit_error"}
        kind = "server_error" if self.status_code >= 500 else "invalid_request_error"
        kind = kinds.get(self.status_code, kind)
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONReply:
        """The whole answer."""
        return JSONReply(self.content(), self.status_code, self.headers)


def invalid(param: str, message: str, code: str = "invalid_value") -> ApiError:
    """The error for a request in which this parameter is wrong."""
    return ApiError(400, f"{param}: {message}", param=param, code=code)


def shutting_down() -> ApiError:
    """The error while the server is being stopped."""
    return ApiError(503, "The server is shutting down.", code="shutting_down")


def too_many(what: str) -> ApiError:
    """The error for one request too many."""
    message = f"{what} Try again in a moment."
    return ApiError(429, message, code="rate_limit_exceeded", headers={"Retry-After": "1"})


class JSONReply(JSONResponse):
    """JSON, whatever its strings and numbers are."""

    def render(self, content: Any) -> bytes:
        return to_json(content).encode()


def to_json(content: Any) -> str:
    """Compact JSON in ASCII: a lone surrogate becomes its escape, NaN and the infinities null."""
    try:
        return json.dumps(content, separators=(",", ":"), allow_nan=False)
    except ValueError:
        return to_json(json.loads(json.dumps(content), parse_constant=lambda _: None))


# What the documentation says of answers

_MEANINGS: dict[int | str, str] = {
    400: "Something in the request is wrong; the message says what.",
    401: "The token is missing or wrong.",
    404: "There is no such model or run.",
    413: "The body is too long.",
    415: "The body is not JSON.",
    429: "Too many requests at once; Retry-After says when to come again.",
    503: "The request took too long, failed in the model, or the server is shutting down.",
    "4XX": "Any other mistake in the request.",
}


def error_responses(*statuses: int | str) -> dict[int | str, dict[str, Any]]:
    """Some errors of an operation."""
    return {status: {"model": ErrorReply, "description": _MEANINGS[status]} for status in statuses}


def generation_responses(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The answers of an operation whose text is sent whole as JSON or, when asked for, in parts."""
    example = 'data: {"id": "…", "choices": […]}\n\ndata: [DONE]\n\n'
    parts = event_stream_response(
        "The texts; with stream, server-sent events with a part each, the last one [DONE].", example
    )
    return {200: {"model": model, **parts}, **error_responses(404, 413, 415, 429, 503)}


def event_stream_response(description: str, example: str) -> dict[str, Any]:
    """An answer made of server-sent events."""
    schema = {
        "type": "object",
        "description": "One server-sent event.",
        "properties": {
            "data": {"type": "string", "description": "JSON, or [DONE]."},
            "event": {"type": "string", "description": "Its kind, where it is no plain message."},
            "id": {"type": "string", "description": "What Last-Event-ID can name."},
        },
    }
    content = {"text/event-stream": {"schema": schema, "example": example}}
    return {"description": description, "content": content}
