"""What generation refuses, and how it says so."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from labkit import GPT, GPTConfig, SampleConfig
from labkit.generation import (
    apply_repetition_penalty,
    apply_temperature,
    complete,
    generate,
    min_p_filter,
    next_token_probabilities,
    next_tokens,
    stream,
    stream_tokens,
    top_k_filter,
    top_p_filter,
)
from labkit.text import CharTokenizer

TOKENIZER = CharTokenizer("abcdefghij")
VOCAB, CONTEXT = TOKENIZER.vocab_size, 7


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=VOCAB, context_length=CONTEXT, d_model=10, n_layers=1, n_heads=2)).eval()


NOT_ABOVE_ZERO = "must be a finite number above 0."


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *(
            (
                lambda x, t=t: apply_temperature(x, t),
                f"apply_temperature: temperature={t} {NOT_ABOVE_ZERO} SampleConfig(temperature=0) decodes",
            )
            for t in (0, 0.0, -0.7, math.nan, math.inf)
        ),
        *(
            (
                lambda x, k=k: top_k_filter(x, k),
                f"top-k: k={k} must be a whole number from 1, which always takes the likeliest token, to 11",
            )
            for k in (0, -2, VOCAB + 1, 2.5, math.nan)
        ),
        *(
            (lambda x, p=p: top_p_filter(x, p), f"top_p_filter: p={p} must be in (0, 1]; p=1 keeps every")
            for p in (0, -0.1, 1.01, math.nan)
        ),
        *(
            (lambda x, p=p: min_p_filter(x, p), f"min_p_filter: p={p} must be in [0, 1]; p=0 keeps every")
            for p in (-0.1, 1.1, math.nan)
        ),
        *(
            (
                lambda x, p=p: apply_repetition_penalty(x, x > 0, p),
                f"apply_repetition_penalty: penalty={p} {NOT_ABOVE_ZERO}",
            )
            for p in (0, -1.5, math.nan, math.inf)
        ),
    ],
)
def test_filters_refuse_settings_out_of_range(call: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call(torch.randn(3, VOCAB))


UNIFORMS = torch.tensor([0.2, 0.7], dtype=torch.float64)


@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"temperature": 0}, {"top_p": 0.5}, {"min_p": 0.1}])
@pytest.mark.parametrize("bad", ["all filtered", "NaN", "inf"])
def test_a_row_with_nothing_to_draw_is_refused(bad: str, settings: dict[str, Any]) -> None:
    logits = torch.randn(2, VOCAB)
    if bad == "all filtered":
        logits[1] = -torch.inf
    else:
        logits[1, 4] = float(bad)
    message = "The logits are not finite (the largest is NaN, inf or -inf), so there is nothing to draw from"
    config = SampleConfig(**settings)
    with pytest.raises(ValueError, match=re.escape(message)):
        next_tokens(logits, config, UNIFORMS)
    with pytest.raises(ValueError, match=re.escape(message)):
        next_token_probabilities(logits, config)


@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"temperature": 0}, {"top_p": 0.5}, {"min_p": 0.1}])
def test_one_token_left_is_enough(settings: dict[str, Any]) -> None:
    logits = torch.full((2, VOCAB), -torch.inf)
    logits[0, 4] = logits[1, 9] = -3.0
    assert next_tokens(logits, SampleConfig(**settings), UNIFORMS).tolist() == [4, 9]


@pytest.mark.parametrize(
    "settings", [{"temperature": 1e-40}, {"repetition_penalty": 1e39}, {"repetition_penalty": 1e-45}]
)
def test_settings_that_overflow_are_refused_by_name(settings: dict[str, float]) -> None:
    """In float32 they give inf or NaN, and then no token at all, or one outside the vocabulary."""
    logits = (torch.arange(VOCAB) - 5.0).expand(2, -1)  # a 0 among them: 0 * inf is NaN
    seen = torch.ones(2, VOCAB, dtype=torch.bool)
    [[name, value]] = settings.items()
    with pytest.raises(ValueError, match=f"too extreme .*{name}={re.escape(str(value))}"):
        next_tokens(logits, SampleConfig(**settings), UNIFORMS, seen)


def test_greedy_is_asked_for_with_temperature_0(model: GPT) -> None:
    texts = [
        generate(model, [1], SampleConfig(temperature=0, max_new_tokens=9), seed=seed) for seed in (1, 2)
    ]
    assert torch.equal(*texts)


# Prompts of text

NO_LETTER = "characters: '£' is not in the alphabet (first at position 1)"


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("", "The prompt is empty; give at least one character, for example a line break"),
        (["a", ""], "The prompt is empty; give at least one character"),
        ([], "there are no prompts; give at least one"),
        ("a£", NO_LETTER),
        (["a", "a£"], NO_LETTER),
        ("a\ud800", "lone surrogate U+D800 at position 1"),
    ],
)
def test_texts_that_cannot_be_continued_are_refused(model: GPT, prompts: Any, message: str) -> None:
    for write in (complete, stream_tokens):
        with pytest.raises(ValueError, match=re.escape(message)):
            write(model, TOKENIZER, prompts)  # before the first token is asked for
    if isinstance(prompts, str):
        with pytest.raises(ValueError, match=re.escape(message)):
            stream(model, TOKENIZER, prompts)


def test_what_is_no_text_is_refused(model: GPT) -> None:
    with pytest.raises(TypeError, match="text must be a str, not bytes"):
        complete(model, TOKENIZER, [b"a"])  # type: ignore[list-item]
    for wrong in ([5], [["a"]], [None]):
        with pytest.raises(ValueError, match=r"prompt 0 .* expected a list of"):
            complete(model, TOKENIZER, wrong)  # type: ignore[arg-type]


def test_one_prompt_is_one_text_not_one_per_character(model: GPT) -> None:
    config = SampleConfig(max_new_tokens=1)
    assert [token.number for token in stream_tokens(model, TOKENIZER, "abc", config)] == [0]
    assert len(complete(model, TOKENIZER, "abc", config)) == 1


# Prompts of ids


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (
            [],
            "prompt 0 has shape (0,); expected a list of at least one token id. To start from nothing, give",
        ),
        ([3, VOCAB], "ids range from 3 to 11; this model knows 0 to 10"),
        ([-1], "ids range from -1 to -1; this model knows 0 to 10"),
        ([0.5], "ids are torch.float32; expected whole numbers"),
        ([True], "ids are torch.bool; expected whole numbers"),
        ("abc", "prompt 0 is 'abc'; expected a list of token ids. Encode text first: tokenizer.encode(text)"),
    ],
)
def test_ids_that_the_model_cannot_read_are_refused(model: GPT, prompt: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        generate(model, prompt)
    with pytest.raises(ValueError, match=re.escape(message.replace("prompt 0", "prompt 1"))):
        generate(model, [[1], prompt])


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[1], [[1, 2]]], "prompt 1 has shape (1, 2); expected a list of at least one token id"),
        ([[1], [[1, 2], [3]]], "prompt 1 is [[1, 2], [3]]; expected a list of token ids"),
        (torch.zeros(2, 0, dtype=torch.long), "prompt 0 has shape (0,); expected a list of at least one"),
        (torch.zeros(0, 2, dtype=torch.long), "there are no prompts; give at least one"),
        (torch.zeros(1, 2, 3, dtype=torch.long), "prompt 0 has shape (1, 2, 3); expected a list of at least"),
        (["ab", "c"], "prompt 0 is 'ab'; expected a list of token ids. Encode text first"),
    ],
)
def test_batches_that_the_model_cannot_read_are_refused(model: GPT, prompts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        generate(model, prompts)


# Settings that do not go with the model, the tokenizer or the function


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: generate(m, [1], SampleConfig(n=2)),
            "generate: one prompt gives one text; for n=2 give a list of prompts, generate(model, [ids]).",
        ),
        (
            lambda m: generate(m, [1], SampleConfig(stop=("ab",))),
            "ids have none. Call complete or stream, which take a tokenizer",
        ),
        (
            lambda m: generate(m, [[1]], SampleConfig(stop=("ab",))),
            "generate: stop=['ab'] is text, and ids have none",
        ),
        (lambda m: generate(m, [1], SampleConfig(top_k=VOCAB + 1)), "top-k: k=12 must be a whole number"),
        (lambda m: generate(m, [1], SampleConfig(top_k=12, temperature=0)), "top-k: k=12 must be a whole"),
        (
            lambda m: generate(m, [1], SampleConfig(eos_id=11)),
            "eos_id=11 is outside the model's vocabulary of 11",
        ),
        (
            lambda m: next_token_probabilities(torch.zeros(VOCAB), SampleConfig(repetition_penalty=1.2)),
            "repetition_penalty=1.2 needs to know which tokens are in the text: give seen",
        ),
        (
            lambda m: complete(m, TOKENIZER, "a", SampleConfig(top_k=VOCAB + 1)),
            "to 11, the size of the vocabulary. Leave top_k out to keep every token.",
        ),
        (
            lambda m: stream(m, TOKENIZER, "a", SampleConfig(n=3)),
            "stream: writes one text; for n=3 call complete or stream_tokens.",
        ),
        (
            lambda m: complete(m, TOKENIZER, "a", SampleConfig(stop=("b", "z"))),
            "stop='z' can never appear: characters: 'z' is not in the alphabet",
        ),
        (
            lambda m: stream_tokens(m, TOKENIZER, "a", logprobs=-1),
            "logprobs=-1 must be from 0 to 11, the vocabulary.",
        ),
        (
            lambda m: stream_tokens(m, TOKENIZER, "a", logprobs=VOCAB + 1),
            "logprobs=12 must be from 0 to 11, the vocabulary.",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(model: GPT, call: Callable[[GPT], Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call(model)


FIELDS = "max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, stop, eos_id, n."


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: generate(m, [1], max_tokens=5),
            f"generate: there is no setting 'max_tokens'. Settings: seed, {FIELDS}",
        ),
        (
            lambda m: complete(m, TOKENIZER, "a", temprature=5),
            f"complete: there is no setting 'temprature'. Settings: seed, {FIELDS}",
        ),
        (lambda m: stream(m, TOKENIZER, "a", k=5), "stream: there is no setting 'k'. Settings: seed, max"),
        (
            lambda m: generate(m, [1], 50),
            "generate: config is 50; expected a SampleConfig. A setting can be given by its name",
        ),
        (lambda m: stream_tokens(m, TOKENIZER, "a", {"n": 2}), "stream_tokens: config is {'n': 2}; expected"),
    ],
)
def test_settings_that_there_are_not_are_refused_with_those_that_there_are(
    model: GPT, call: Callable[[GPT], Any], message: str
) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        call(model)


def test_settings_by_name_are_checked_as_in_a_configuration(model: GPT) -> None:
    with pytest.raises(ValueError, match=r"SampleConfig: temperature=-1 must be"):
        generate(model, [1], temperature=-1)


# Prompts longer than the context


def test_of_a_prompt_longer_than_the_context_the_end_is_read_and_a_warning_gives_both_numbers(
    model: GPT,
) -> None:
    config = SampleConfig(max_new_tokens=3, temperature=0)
    long = "jihgfed" + "cbabcde"
    message = "prompt 0 has 14 tokens; the model reads the last 7."
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a prompt that just fits warns of nothing
        [fits] = complete(model, TOKENIZER, long[-CONTEXT:], config)
    with pytest.warns(UserWarning, match=re.escape(message)):
        [cut] = complete(model, TOKENIZER, long, config)
    assert cut.text == fits.text
    with pytest.warns(UserWarning, match=re.escape(message)):
        ids = generate(model, TOKENIZER.encode(long), config)
    assert ids.tolist() == TOKENIZER.encode(long) + [token.id for token in cut.tokens]
