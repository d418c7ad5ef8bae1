"""What answers look like, for the documentation."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

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
    text: str = Field(
        description="The text, without the prompt and the stop string; in a stream, the next piece."
    )
    logprobs: CompletionLogprobs | None = Field(description="null unless asked for.")
    finish_reason: Finish | None = Field(
        description="stop: a stop string or the end of the text. length: max_tokens."
    )


class Completion(BaseModel):
    """Continued texts; with stream, each event holds one of these with the next piece of one text."""

    id: str = Field(description="Name of this answer.", examples=["cmpl-5d0c"])
    object: Literal["text_completion"] = Field(description="What this is.")
    created: int = Field(description="When, in seconds since 1970.")
    model: str = Field(description="Which model wrote.", examples=["shipped"])
    seed: int = Field(description="Ask with this seed to get the same texts again.")
    choices: list[CompletionChoice] = Field(description="The texts.")
    usage: Usage | None = Field(
        None, description="Tokens counted; in a stream only in a last event, if asked for."
    )


class TokenChance(BaseModel):
    """A token and its chance."""

    token: str = Field(description="Its text; bytes that are no whole character as bytes:\\xNN.")
    logprob: float = Field(description="Natural logarithm of what the model gave it, before any filter.")
    bytes: list[int] = Field(description="Its bytes.")


class ChosenToken(TokenChance):
    """A token that was drawn."""

    top_logprobs: list[TokenChance] = Field(description="The likeliest ones at its place.")


class ChatLogprobs(BaseModel):
    """The tokens of which the answer shows something."""

    content: list[ChosenToken] = Field(description="One for each token.")


class Answer(BaseModel):
    """What the model says."""

    role: Literal["assistant"] = Field(description="Who speaks.")
    content: str = Field(description="The answer.")


class ChatChoice(BaseModel):
    """One answer."""

    index: int = Field(description="Its number.")
    message: Answer = Field(description="What the model says; in a stream, delta in its place.")
    logprobs: ChatLogprobs | None = Field(description="null unless asked for.")
    finish_reason: Finish = Field(
        description="stop: a stop string or the end of the answer. length: max_tokens."
    )


class ChatCompletion(BaseModel):
    """Answers to a conversation; with stream, events of object chat.completion.chunk with a delta each."""

    id: str = Field(description="Name of this answer.", examples=["chatcmpl-5d0c"])
    object: Literal["chat.completion"] = Field(description="What this is.")
    created: int = Field(description="When, in seconds since 1970.")
    model: str = Field(description="Which model wrote.", examples=["smollm2"])
    seed: int = Field(description="Ask with this seed to get the same answers again.")
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


class ModelList(BaseModel):
    """The models that can be asked: there is one."""

    object: Literal["list"] = Field(description="What this is.")
    data: list[ModelCard] = Field(description="The models.")


class RunSummary(BaseModel):
    """How far a training run has come. Losses in nats per token; null where nothing was measured."""

    id: str = Field(description="The run's name.", examples=["first"])
    state: str = Field(
        description='finished, "running?" (a row within two minutes), stopped, or unreadable: why.'
    )
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


class RunList(BaseModel):
    """All runs, oldest first."""

    object: Literal["list"] = Field(description="What this is.")
    data: list[RunSummary] = Field(description="The runs.")


class RunDetails(RunSummary):
    """A run and what it was started with."""

    config: dict[str, Any] | None = Field(description="Its config.json; null where that is damaged.")


class Sample(BaseModel):
    """What a model wrote while it was trained."""

    step: int | None = Field(description="After how many steps.")
    prompt: str | None = Field(description="What it continued.")
    text: str | None = Field(description="What it wrote.")


class SampleList(BaseModel):
    """Samples of a run, oldest first."""

    object: Literal["list"] = Field(description="What this is.")
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
