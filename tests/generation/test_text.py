"""Text from a model: whole characters, an end at stop strings, log-probabilities, one text or many."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scripted import Pieces, Scripted
from torch import nn

from labkit import GPT, GPTConfig, SampleConfig
from labkit.generation import Completion, complete, stream, stream_tokens
from labkit.text import CharTokenizer, Tokenizer
from labkit.text.bpe import train_bpe

LONGEST = 40


def written(pieces: list[bytes], *stop: str, end: bool = False, **changes: Any) -> Completion:
    """What comes of a model that writes these pieces, and the end of the text where `end` is set."""
    tokenizer = Pieces(pieces)
    script = [*range(len(pieces))] + [tokenizer.eos_id] * end
    settings = {"temperature": 0, "max_new_tokens": len(script), "stop": stop} | changes
    model = Scripted(tokenizer.vocab_size, LONGEST).say(script)
    [completion] = complete(model, tokenizer, "?", SampleConfig(**settings))
    return completion


def given_out(completion: Completion) -> list[str]:
    return [token.text for token in completion.tokens]


def test_a_completion_is_shown_on_one_short_line() -> None:
    long = Completion("word\n" * 400, written([b"a", b"b"]).tokens)
    shown = ("word\n" * 12)[:59] + "…"
    assert repr([long]) == f"[Completion({shown!r}, 2 tokens, finish='length')]"
    assert repr(written([b"a", b"b"])) == "Completion('ab', 2 tokens, finish='length')"
    assert repr(Completion()) == "Completion('', 0 tokens, finish=None)"


# Stop strings


@pytest.mark.parametrize(
    ("pieces", "stop", "shown"),
    [
        ([b"one ", b"two ", b"three"], ["two"], ["one ", ""]),
        ([b"a", b"EN", b"D", b"b"], ["END"], ["a", "", ""]),  # across tokens: held back, then cut
        ([b"a", b"EN", b"T"], ["END"], ["a", "", "ENT"]),  # it was none after all
        ([b"xEN", b"END", b"y"], ["END"], ["x", "EN"]),  # a false start before the real one
        ([b"aa", b"a", b"b"], ["aab"], ["", "a", ""]),  # the start slides by one
        ([b"abab", b"ac"], ["ababac"], ["", ""]),
        ([b"ababab", b"ac", b"d"], ["ababac"], ["ab", ""]),
        ([b"END", b"a"], ["END"], [""]),  # at the very start
        ([b"EN", b"D"], ["END"], ["", ""]),
        ([b"a.", b"b!"], [".", "!"], ["a"]),  # several: the earliest
        ([b"a!b.", b"c"], [".", "!"], ["a"]),  # whatever their order
        ([b"one of", b" us"], ["one of us", "of"], ["one "]),
        ([b"xab", b"cd"], ["abcd", "bc"], ["x", "a"]),  # the one that ends first
        ([b"xabcd"], ["abcd", "bc"], ["xa"]),  # also where one token holds both
        ([b"xabc"], ["c", "abc"], ["x"]),  # both end here: the longer one
        ([b"a\n", b"\nb"], ["\n\n"], ["a", ""]),
        ([b"x\xc3", b"\xa9y"], ["é"], ["x", ""]),  # a stop string cut within a character
    ],
)
def test_text_ends_before_the_stop_string(pieces: list[bytes], stop: list[str], shown: list[str]) -> None:
    completion = written(pieces, *stop)
    assert given_out(completion) == shown
    if shown[-1] == "ENT":
        assert completion.finish == "length"
    else:
        assert completion.finish == "stop"
        assert [token.finish for token in completion.tokens[:-1]] == [None] * (len(shown) - 1)


def test_what_may_become_a_stop_string_is_shown_when_the_text_ends_otherwise() -> None:
    assert given_out(written([b"a", b"EN"], "END")) == ["a", "EN"]
    assert given_out(written([b"a", b"EN"], "END", end=True)) == ["a", "", "EN"]


def test_the_stop_string_in_the_prompt_stops_nothing() -> None:
    tokenizer = CharTokenizer("ENDx")
    model = Scripted(tokenizer.vocab_size, LONGEST).say(tokenizer.encode("xxx" * 5))
    config = SampleConfig(temperature=0, max_new_tokens=4, stop=("NDx", "END"))
    [completion] = complete(model, tokenizer, "END", config)
    assert (completion.text, completion.finish) == ("xxxx", "length")


characters = st.sampled_from("aab.é日🙂")
short = st.text(characters, min_size=1, max_size=4)


@st.composite
def cut_texts(draw: st.DrawFn) -> list[bytes]:
    """A text cut at any byte; now and then its last character is not whole."""
    data = draw(st.text(characters, min_size=1, max_size=9)).encode()
    data = data[: len(data) - draw(st.sampled_from([0, 0, 0, 1]))] or b"a"
    cuts = sorted(draw(st.sets(st.integers(1, len(data)), max_size=8)) | {0, len(data)})
    return [data[start:end] for start, end in pairwise(cuts)]


def cut_plainly(text: str, stops: list[str]) -> tuple[str, bool]:
    """Read character by character until a stop string is complete."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


def certain(text: str, stops: list[str]) -> str:
    """What is sure to be shown, whatever follows the text."""
    text, stopped = cut_plainly(text, stops)
    if stopped:
        return text
    begun = [size for stop in stops for size in range(len(stop)) if text.endswith(stop[:size])]
    return text[: len(text) - max(begun, default=0)]


@given(cut_texts(), st.lists(short, max_size=3), st.booleans())
def test_streamed_text_is_the_whole_text_cut_plainly_and_each_piece_comes_as_early_as_it_may(
    pieces: list[bytes], stops: list[str], end: bool
) -> None:
    completion = written(pieces, *stops, end=end)
    whole = b"".join(pieces).decode("utf-8", "ignore")
    text, stopped = cut_plainly(whole, stops)
    assert completion.text == text
    assert completion.finish == ("stop" if stopped else "eos" if end else "length")
    shown = read = ""
    for number, token in enumerate(completion.tokens[:-1]):
        shown += token.text
        read = b"".join(pieces[: number + 1]).decode("utf-8", "ignore")
        assert shown == certain(read, stops)
        assert not cut_plainly(read, stops)[1]  # else it would have stopped here


# Whole characters

TEXT = "Ein 🙂 und 日本語, naïve – 👩‍🔬!"


@pytest.mark.parametrize("vocab_size", [257, 262, 275])
def test_no_piece_has_half_a_character_and_all_together_are_the_text(vocab_size: int) -> None:
    tokenizer = train_bpe([TEXT * 3], vocab_size, progress=False)
    ids = tokenizer.encode(TEXT)
    model = Scripted(tokenizer.vocab_size, len(ids)).say(ids)
    config = SampleConfig(temperature=0, max_new_tokens=len(ids))
    pieces = list(stream(model, tokenizer, "E", config))
    assert "".join(pieces) == tokenizer.decode(ids) == TEXT
    assert not any("\ufffd" in piece for piece in pieces)
    halves = sum("\ufffd" in tokenizer.decode([token]) for token in ids)
    assert halves > 0, "no token is half a character: the test proves nothing"
    assert "" not in pieces


def test_an_unfinished_character_at_the_end_is_left_out() -> None:
    tokenizer = train_bpe(["ab"], 257, progress=False)
    ids = tokenizer.encode("a🙂")
    model = Scripted(tokenizer.vocab_size, LONGEST).say(ids)
    for count, text in ((2, "a"), (3, "a"), (4, "a"), (5, "a🙂")):
        config = SampleConfig(temperature=0, max_new_tokens=count)
        assert complete(model, tokenizer, "b", config)[0].text == text
    assert written([b"a", b"\xf0\x9f"], end=True).text == "a"


@given(st.lists(st.binary(min_size=1, max_size=3), min_size=1, max_size=6))
def test_bytes_that_are_no_text_are_replaced_as_decode_does(pieces: list[bytes]) -> None:
    text, whole = written(pieces).text, b"".join(pieces).decode("utf-8", "replace")
    assert whole.startswith(text)
    assert whole[len(text) :] in ("", "\ufffd", "\ufffd\ufffd")  # the last character may be unfinished


# The end of a text


def test_the_end_of_text_token_ends_the_text_and_is_not_shown() -> None:
    completion = written([b"a", b"b"], end=True, max_new_tokens=9)
    assert (completion.text, completion.finish) == ("ab", "eos")
    assert [token.id for token in completion.tokens] == [0, 1, 2]
    assert given_out(completion) == ["a", "b", ""]


def test_a_token_of_ones_own_ends_the_text_in_place_of_the_tokenizers() -> None:
    completion = written([b"a", b"b", b"c"], eos_id=1)
    assert (completion.text, completion.finish) == ("a", "eos")
    completion = written([b"a", b"b"], end=True, eos_id=0)
    assert (completion.text, completion.finish) == ("", "eos")


def test_the_last_allowed_token_may_be_the_end_or_complete_a_stop_string() -> None:
    assert written([b"a"], end=True).finish == "eos"
    assert written([b"a", b"b"], "b").finish == "stop"
    assert written([b"a", b"b"]).finish == "length"


def test_a_text_that_has_stopped_costs_no_further_step() -> None:
    tokenizer, steps = Pieces([b"a", b"b"]), []
    model = Scripted(tokenizer.vocab_size, LONGEST).say([0, 1, *[0] * 30])
    model.register_forward_hook(lambda *_: steps.append(1))
    tokens = list(stream_tokens(model, tokenizer, ["?"], SampleConfig(temperature=0, stop=("b",))))
    assert [token.finish for token in tokens] == [None, "stop"]
    assert len(steps) <= 2


# A model that predicts something else at every position

TOKENIZER = CharTokenizer("abcdefghij")
PROMPTS = ["c", "abcab", "jj", "abcdefghija"]  # the last is longer than the context
CONTEXT = 9


def gpt(tokenizer: Tokenizer = TOKENIZER) -> GPT:
    torch.manual_seed(0)
    shape = {"context_length": CONTEXT, "d_model": 10, "n_layers": 2, "n_heads": 2}
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **shape))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.8)
    return model.double().eval()


SETTINGS = [
    SampleConfig(max_new_tokens=17),
    SampleConfig(max_new_tokens=17, temperature=1.8, top_k=7, top_p=0.95, repetition_penalty=1.2),
    SampleConfig(max_new_tokens=17, stop=("ab", "e", "hg")),
    SampleConfig(max_new_tokens=17, temperature=2.5, eos_id=3),
]


@pytest.mark.filterwarnings("ignore:generate. prompt . has 11 tokens")
@pytest.mark.parametrize("config", SETTINGS)
def test_streamed_alone_and_in_a_batch_it_is_the_same_text(config: SampleConfig) -> None:
    model = gpt()
    batch = complete(model, TOKENIZER, PROMPTS, config, seed=5)
    assert len({len(each.tokens) for each in batch}) > 1 or config == SETTINGS[0] or config == SETTINGS[1]
    for number, prompt in enumerate(PROMPTS):
        [alone] = complete(model, TOKENIZER, prompt, config, seed=5 + number)
        assert [token.id for token in batch[number].tokens] == [token.id for token in alone.tokens]
        assert batch[number].text == alone.text
        assert batch[number].finish == alone.finish
        assert "".join(stream(model, TOKENIZER, prompt, config, seed=5 + number)) == alone.text


def test_n_texts_of_each_prompt_are_those_of_consecutive_seeds() -> None:
    model, config = gpt(), SampleConfig(max_new_tokens=12, temperature=1.4, n=3, stop=("e",))
    texts = complete(model, TOKENIZER, ["c", "abcab"], config, seed=20)
    assert len(texts) == 6
    single = SampleConfig(max_new_tokens=12, temperature=1.4, stop=("e",))
    for number, text in enumerate(texts):
        prompt = ["c", "abcab"][number // 3]
        assert text.text == complete(model, TOKENIZER, prompt, single, seed=20 + number)[0].text
    assert len({text.text for text in texts[:3]}) == 3


def test_every_token_belongs_to_a_text_and_none_follows_its_last() -> None:
    config = SampleConfig(max_new_tokens=12, temperature=1.4, n=2, stop=("e",))
    ended: set[int] = set()
    for token in stream_tokens(gpt(), TOKENIZER, ["c", "abcab"], config):
        assert token.number in range(4)
        assert token.number not in ended
        if token.finish:
            ended.add(token.number)
    assert ended == {0, 1, 2, 3}


# Prompts


def test_ids_in_place_of_a_text_continue_alike_also_side_by_side() -> None:
    model, config = gpt(), SampleConfig(max_new_tokens=12, temperature=1.4, n=2)
    texts = complete(model, TOKENIZER, ["cab", "abcab"], config, seed=3)
    ids = [TOKENIZER.encode("cab"), TOKENIZER.encode("abcab")]
    for prompts in (ids, ["cab", torch.tensor(ids[1])], [tuple(ids[0]), "abcab"]):
        assert complete(model, TOKENIZER, prompts, config, seed=3) == texts
        assert [t.number for t in stream_tokens(model, TOKENIZER, prompts, config)][:4] == [0, 1, 2, 3]
    single = SampleConfig(max_new_tokens=12, temperature=1.4)
    assert "".join(stream(model, TOKENIZER, ids[0], single, seed=3)) == texts[0].text


@pytest.mark.parametrize("prompts", [[[]], [[1.5]], [3, 4], [[10**6]], [["a"]], [[[1], [2]]]])
def test_prompts_that_are_no_ids_are_refused(prompts: Any) -> None:
    with pytest.raises(ValueError, match=r"prompt|ids"):
        complete(gpt(), TOKENIZER, prompts)


# Log-probabilities


@pytest.mark.parametrize("count", [0, 1, 4, TOKENIZER.vocab_size])
def test_logprobs_are_those_of_the_models_raw_logits(count: int) -> None:
    """Whatever the filters did, and computed without a cache."""
    model, prompt = gpt(), "abc"
    config = SampleConfig(max_new_tokens=6, temperature=0.7, top_k=3, repetition_penalty=1.5, n=2)
    completions = complete(model, TOKENIZER, prompt, config, seed=3, logprobs=count)
    for completion in completions:
        ids = TOKENIZER.encode(prompt)
        for token in completion.tokens:
            with torch.no_grad():
                expected = model(torch.tensor([ids]))[0, -1].log_softmax(-1)
            assert token.log_probability == pytest.approx(expected[token.id].item(), abs=1e-10)
            assert len(token.alternatives) == count
            assert [each for each, _ in token.alternatives] == expected.topk(count).indices.tolist()
            chances = [chance for _, chance in token.alternatives]
            assert chances == pytest.approx(expected.topk(count).values.tolist(), abs=1e-10)
            assert chances == sorted(chances, reverse=True)
            ids.append(token.id)


def test_without_asking_there_are_no_logprobs_and_asking_changes_no_text() -> None:
    model, config = gpt(), SampleConfig(max_new_tokens=6)
    [plain] = complete(model, TOKENIZER, "c", config)
    [asked] = complete(model, TOKENIZER, "c", config, logprobs=2)
    assert {(token.log_probability, token.alternatives) for token in plain.tokens} == {(None, ())}
    assert asked.text == plain.text


def test_a_stream_that_is_left_restores_the_models_mode() -> None:
    model = gpt().train()
    pieces = stream(model, TOKENIZER, "c", SampleConfig(max_new_tokens=6))
    next(pieces)
    assert not model.training
    del pieces
    assert model.training
