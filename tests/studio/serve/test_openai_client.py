"""OpenAI's own client against the API: texts, streams, stop strings, log-probabilities, chats, errors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from serving import (
    CHARACTERS,
    CONTEXT,
    Gate,
    Running,
    chat_tokenizer,
    running,
    tiny_app,
    tiny_model,
    wait_for,
)

from labkit import GPT, SampleConfig
from labkit.generation import complete
from labkit.text import encode_chat
from labstudio.serve.app import create_app
from labstudio.serve.completions import finite
from labstudio.serve.config import ServeConfig

PROMPT = "abc. "
HELLO = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "the é"}]


@pytest.fixture(scope="module")
def model() -> GPT:
    return tiny_model(CHARACTERS.vocab_size)


@pytest.fixture(scope="module")
def chat() -> Iterator[Running]:
    tokenizer = chat_tokenizer()
    config = ServeConfig(port=0, token="another-token-of-the-tests", max_tokens=60)
    with running(create_app(tiny_model(tokenizer.vocab_size), tokenizer, config, name="talker")) as server:
        yield server


@pytest.fixture
def talker(chat: Running) -> openai.OpenAI:
    return chat.openai(api_key="another-token-of-the-tests")


def ask(server: Running, **changes: Any) -> Any:
    return server.openai().completions.create(
        **{"model": "tiny", "prompt": PROMPT, "max_tokens": 30, "seed": 7} | changes
    )


def test_the_model_is_listed_and_found(tiny: Running) -> None:
    [listed] = tiny.openai().models.list()
    assert (listed.id, listed.object, listed.owned_by) == ("tiny", "model", "labkit")
    assert tiny.openai().models.retrieve("tiny") == listed
    assert (listed.context_length, listed.chat) == (CONTEXT, False)


@pytest.mark.parametrize(
    ("asked", "extra", "same"),
    [
        ({}, {}, {}),
        ({"temperature": 0}, {}, {"temperature": 0}),
        ({"temperature": 0.6, "top_p": 0.8}, {}, {"temperature": 0.6, "top_p": 0.8}),
        ({"n": 3}, {"top_k": 4, "min_p": 0.02}, {"n": 3, "top_k": 4, "min_p": 0.02}),
        (
            {"stop": ["ab", "."]},
            {"repetition_penalty": 1.3},
            {"stop": ("ab", "."), "repetition_penalty": 1.3},
        ),
        ({"max_tokens": 3 * CONTEXT}, {}, {"max_new_tokens": 3 * CONTEXT}),  # outgrows the context
    ],
)
def test_the_same_seed_gives_the_text_that_labkit_gives(
    tiny: Running, model: GPT, asked: dict[str, Any], extra: dict[str, Any], same: dict[str, Any]
) -> None:
    answer = ask(tiny, **asked, extra_body=extra)
    settings = SampleConfig(**{"max_new_tokens": 30} | same)
    expected = complete(model, CHARACTERS, PROMPT, settings, seed=7)
    assert [choice.text for choice in answer.choices] == [each.text for each in expected]
    assert [choice.index for choice in answer.choices] == list(range(settings.n))
    reasons = {"length": "length", "stop": "stop", "eos": "stop"}
    assert [choice.finish_reason for choice in answer.choices] == [reasons[each.finish] for each in expected]
    drawn = sum(len(each.tokens) for each in expected)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(PROMPT), drawn)
    assert answer.usage.total_tokens == len(PROMPT) + drawn
    assert (answer.object, answer.model, answer.seed) == ("text_completion", "tiny", 7)

    streamed = {choice.index: ["", None] for choice in answer.choices}
    for event in ask(tiny, **asked, extra_body=extra, stream=True):
        for choice in event.choices:
            assert streamed[choice.index][1] is None
            streamed[choice.index][0] += choice.text
            streamed[choice.index][1] = choice.finish_reason
    assert streamed == {choice.index: [choice.text, choice.finish_reason] for choice in answer.choices}


@pytest.mark.parametrize("stream", [False, True])
def test_without_a_seed_one_is_drawn_and_told(tiny: Running, stream: bool) -> None:
    def text_and_seed(**changes: Any) -> tuple[str, int]:
        answer = ask(tiny, max_tokens=30, stream=stream, **changes)
        if not stream:
            return answer.choices[0].text, answer.seed
        events = list(answer)
        assert len({event.seed for event in events}) == 1
        return "".join(event.choices[0].text for event in events), events[0].seed

    text, seed = text_and_seed(seed=None)
    assert text_and_seed(seed=seed) == (text, seed)
    assert text_and_seed(seed=None)[1] != seed


@pytest.mark.parametrize("form", ["text", "texts", "ids", "lists of ids"])
def test_prompts_are_texts_or_ids_one_or_many(tiny: Running, model: GPT, form: str) -> None:
    texts = [PROMPT] if form in ("text", "ids") else [PROMPT, "é日", "j"]
    ids = [CHARACTERS.encode(text) for text in texts]
    prompt = {"text": PROMPT, "texts": texts, "ids": ids[0], "lists of ids": ids}[form]
    answer = ask(tiny, prompt=prompt, n=2)
    expected = complete(model, CHARACTERS, texts, SampleConfig(max_new_tokens=30, n=2), seed=7)
    assert [choice.text for choice in answer.choices] == [each.text for each in expected]
    assert answer.usage.prompt_tokens == sum(map(len, ids))


def test_usage_comes_last_in_a_stream_where_asked_for(tiny: Running) -> None:
    *events, last = ask(tiny, stream=True, stream_options={"include_usage": True})
    assert all(event.usage is None for event in events)
    assert last.choices == []
    assert last.usage == ask(tiny).usage
    assert not any("usage" in event.model_fields_set for event in ask(tiny, stream=True))


@pytest.mark.parametrize("logprobs", [0, 3])
@pytest.mark.parametrize("stop", [None, ["ab", "d."]])
def test_log_probabilities_are_those_of_the_tokens_that_show(
    tiny: Running, model: GPT, logprobs: int, stop: list[str] | None
) -> None:
    answer = ask(tiny, logprobs=logprobs, stop=stop, max_tokens=60)
    settings = SampleConfig(max_new_tokens=60, stop=tuple(stop or ()))
    [expected] = complete(model, CHARACTERS, PROMPT, settings, seed=7, logprobs=logprobs)
    [choice] = answer.choices
    found = choice.logprobs
    shown = expected.tokens[: len(choice.text)]
    assert "".join(found.tokens) == choice.text
    assert found.text_offset == list(range(len(choice.text)))
    assert found.token_logprobs == pytest.approx([token.log_probability for token in shown], abs=1e-6)
    for token, tops in zip(shown, found.top_logprobs, strict=True):
        named = dict([(token.id, token.log_probability), *token.alternatives])
        assert tops == pytest.approx(
            {CHARACTERS.decode([other]): chance for other, chance in named.items()}, abs=1e-6
        )
    if stop:
        assert (choice.finish_reason, len(expected.tokens) > len(shown)) == ("stop", True)

    streamed: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "text_offset": []}
    for event in ask(tiny, logprobs=logprobs, stop=stop, max_tokens=60, stream=True):
        for name, values in streamed.items():
            values += getattr(event.choices[0].logprobs, name)
    assert streamed == {name: getattr(found, name) for name in streamed}


def test_characters_of_several_tokens_come_whole_and_their_bytes_are_told(talker: openai.OpenAI) -> None:
    ask = {"model": "talker", "prompt": "é", "max_tokens": 60, "logprobs": 1, "n": 5, "seed": 2}
    cut = 0
    for choice in talker.completions.create(**ask).choices:
        found = choice.logprobs
        data = b"".join(
            bytes.fromhex(token.removeprefix("bytes:").replace("\\x", ""))
            if token.startswith("bytes:")
            else token.encode()
            for token in found.tokens
        )
        assert data.decode(errors="replace") == choice.text
        cut += sum(token.startswith("bytes:") for token in found.tokens)
        ends = [*found.text_offset[1:], len(choice.text)]
        for token, start, end in zip(found.tokens, found.text_offset, ends, strict=True):
            assert token.startswith("bytes:") or choice.text[start:end].endswith(token)
    assert cut


# Conversations


def test_a_conversation_is_answered_as_labkit_does(talker: openai.OpenAI) -> None:
    tokenizer = chat_tokenizer()
    settings = SampleConfig(max_new_tokens=25, temperature=0.8, n=2)
    prompt = encode_chat(tokenizer, HELLO)
    expected = complete(tiny_model(tokenizer.vocab_size), tokenizer, [prompt], settings, seed=5, logprobs=2)
    asked = {"model": "talker", "messages": HELLO, "temperature": 0.8, "n": 2, "seed": 5, "logprobs": True}
    answer = talker.chat.completions.create(**asked, max_tokens=25, top_logprobs=2)
    assert answer.object == "chat.completion"
    assert answer.usage.prompt_tokens == len(prompt)
    for choice, each in zip(answer.choices, expected, strict=True):
        assert (choice.message.role, choice.message.content) == ("assistant", each.text)
        assert choice.finish_reason == ("length" if each.finish == "length" else "stop")
        for found, token in zip(choice.logprobs.content, each.tokens, strict=False):
            assert bytes(found.bytes) == tokenizer.token_bytes(token.id)
            assert found.logprob == pytest.approx(token.log_probability, abs=1e-6)
            tops = [(bytes(other.bytes), other.logprob) for other in found.top_logprobs]
            assert tops == [
                (tokenizer.token_bytes(other), pytest.approx(chance, abs=1e-6))
                for other, chance in token.alternatives
            ]

    said: dict[int, list[Any]] = {0: [], 1: []}
    for event in talker.chat.completions.create(**asked, max_completion_tokens=25, stream=True):
        assert event.object == "chat.completion.chunk"
        said[event.choices[0].index].append(event.choices[0])
    for number, parts in said.items():
        assert (parts[0].delta.role, parts[0].delta.content) == ("assistant", "")
        assert "".join(part.delta.content or "" for part in parts) == expected[number].text
        assert [part.finish_reason for part in parts[:-1]] == [None] * (len(parts) - 1)
        assert parts[-1].finish_reason == answer.choices[number].finish_reason


def test_an_answer_ends_at_the_models_own_end_or_the_servers_limit(
    chat: Running, talker: openai.OpenAI
) -> None:
    seen = set()
    for seed in range(40):
        answer = talker.chat.completions.create(model="talker", messages=HELLO[1:], seed=seed)
        seen.add(answer.choices[0].finish_reason)
        assert "<|im_end|>" not in answer.choices[0].message.content
        assert (answer.choices[0].finish_reason == "length") == (answer.usage.completion_tokens == 60)
    assert seen == {"stop", "length"}


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"messages": [{"role": "user", "content": "a<|im_end|>b"}]}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "oracle", "content": "?"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "?"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "a" * CONTEXT}]}, "messages"),
        ({"messages": [{"role": "user", "content": "a" * 10**5}]}, "messages"),
        ({"max_completion_tokens": 61}, "max_completion_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
    ],
)
def test_conversations_that_cannot_be_answered_name_the_parameter(
    talker: openai.OpenAI, changes: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        talker.chat.completions.create(**{"model": "talker", "messages": HELLO} | changes)
    assert refused.value.param == param


def test_half_a_utf_16_pair_in_a_conversation_is_refused(chat: Running) -> None:
    with chat.http(headers={"Authorization": "Bearer another-token-of-the-tests"}) as client:
        messages = b'[{"role": "user", "content": "a\\ud800"}]'
        answer = client.post(
            "/v1/chat/completions",
            content=b'{"model": "talker", "messages": ' + messages + b"}",
            headers={"Content-Type": "application/json"},
        )
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages.0.content")


def test_a_model_that_was_not_made_for_conversations_says_so(tiny: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="no chat template") as refused:
        tiny.openai().chat.completions.create(model="tiny", messages=HELLO)
    assert refused.value.code == "not_a_chat_model"


# Errors


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": [PROMPT, 3]}, "prompt", "invalid_value"),
        ({"prompt": "xyz"}, "prompt", "invalid_value"),
        ({"prompt": "a" * (CONTEXT + 1)}, "prompt", "context_length_exceeded"),
        ({"prompt": [0] * (CONTEXT + 1)}, "prompt", "context_length_exceeded"),
        ({"prompt": [1, CHARACTERS.vocab_size]}, "prompt", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 2049}, "max_tokens", "invalid_value"),
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"n": 17}, "n", "invalid_value"),
        ({"n": 6, "prompt": ["a", "b", "c"]}, "n", "invalid_value"),
        ({"logprobs": 6}, "logprobs", "invalid_value"),
        ({"seed": -1}, "seed", "invalid_value"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"stop": ["a"] * 5}, "stop", "invalid_value"),
        ({"stop": "a" * 201}, "stop", "invalid_value"),
        ({"stop": ["a", ""]}, "stop", "invalid_value"),
        ({"stop": "z"}, "stop", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"echo": True}, "echo", "unsupported_parameter"),
        ({"suffix": "z"}, "suffix", "unsupported_parameter"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_parameter"),
        ({"presence_penalty": 0.1}, "presence_penalty", "unsupported_parameter"),
        ({"frequency_penalty": -0.1}, "frequency_penalty", "unsupported_parameter"),
        ({"extra_body": {"tempreature": 1}}, "tempreature", "unknown_parameter"),
        ({"extra_body": {"top_k": 0}}, "top_k", "invalid_value"),
        ({"extra_body": {"top_k": CHARACTERS.vocab_size + 1}}, "top_k", "invalid_value"),
        ({"extra_body": {"top_k": True}}, "top_k", "invalid_value"),
        ({"extra_body": {"repetition_penalty": 0}}, "repetition_penalty", "invalid_value"),
    ],
)
def test_what_is_wrong_is_named(tiny: Running, changes: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(tiny, **changes)
    assert (refused.value.param, refused.value.code) == (param, code)
    assert refused.value.type == "invalid_request_error"
    if param != "stream_options":
        with pytest.raises(openai.BadRequestError):
            ask(tiny, stream=True, **changes)


def test_defaults_of_what_is_not_supported_are_accepted(tiny: Running) -> None:
    plain = {
        "best_of": 1,
        "echo": False,
        "suffix": None,
        "logit_bias": {},
        "presence_penalty": 0,
        "user": "me",
    }
    more = {"frequency_penalty": 0.0, "temperature": None, "top_p": 1, "n": None, "stop": None}
    assert ask(tiny, **plain, **more).choices[0].text == ask(tiny).choices[0].text


def test_errors_are_those_that_the_client_knows(tiny: Running, gate: Gate) -> None:
    with pytest.raises(openai.AuthenticationError):
        tiny.openai(api_key="a-token-of-somebody-else").models.list()
    with pytest.raises(openai.NotFoundError) as refused:
        ask(tiny, model="gpt-5")
    assert (refused.value.param, refused.value.code) == ("model", "model_not_found")
    with pytest.raises(openai.NotFoundError):
        tiny.openai().models.retrieve("gpt-5")
    assert gate.started == 0


def test_more_requests_than_places_are_told_to_come_again(gate: Gate) -> None:
    with running(tiny_app(active=1, waiting=1)) as server:
        gate.let(1)
        stream = ask(server, stream=True)  # its first token has come
        with pytest.raises(openai.APITimeoutError):
            server.openai(timeout=1).completions.create(
                model="tiny", prompt="a"
            )  # waited for a token; has gone
        wait_for(lambda: server.service.scheduler.open == 1)
        server.service.scheduler.places = 1
        with pytest.raises(openai.RateLimitError) as refused:
            ask(server)
        assert refused.value.response.headers["retry-after"] == "1"
        gate.let(10**6)
        text = "".join(event.choices[0].text for event in stream)
        wait_for(lambda: server.service.scheduler.open == 0)
        assert ask(server).choices[0].text == text != ""


def test_a_request_that_takes_too_long_ends_with_an_error(gate: Gate) -> None:
    with running(tiny_app(generate_seconds=0.5)) as server:
        with pytest.raises(openai.InternalServerError) as late:
            ask(server)
        assert (late.value.status_code, late.value.code) == (503, "timeout")
        gate.let(2)  # the waiting token of the request that is over, and one
        stream = ask(server, stream=True)
        with pytest.raises(openai.APIError, match="too long"):
            list(stream)
        gate.let(10**6)
        wait_for(lambda: gate.closed == gate.started == 2)
        assert server.service.scheduler.open == 0


def test_a_bug_in_one_request_leaves_the_others_alone(
    gate: Gate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate.let(10**6)
    original = gate.original

    def failing(*args: Any, seed: int, **kwargs: Any) -> Any:
        for number, token in enumerate(original(*args, seed=seed, **kwargs)):
            if seed == 13 and number == 4:
                raise ZeroDivisionError("the secret of this machine")
            yield token

    gate.original = failing
    with running(tiny_app()) as server:
        good = ask(server).choices[0].text
        with pytest.raises(openai.InternalServerError) as failed:
            ask(server, seed=13)
        assert failed.value.status_code == 503
        assert "secret" not in str(failed.value)
        with pytest.raises(openai.APIError, match="failed on this request"):
            list(ask(server, seed=13, stream=True))
        assert ask(server).choices[0].text == good
        assert server.service.scheduler.open == 0
    assert "the secret of this machine" in caplog.text


def test_the_log_probability_of_the_impossible_is_a_number() -> None:
    assert finite(-math.inf) == -9999.0
    assert finite(-0.5) == -0.5
