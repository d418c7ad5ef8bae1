"""The sampling playground without a browser: settings, results, messages, writing in the background."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from labkit import GPT, GPTConfig, SampleConfig, TrainConfig, Trainer
from labkit.generation import Token, complete, next_token_probabilities
from labkit.text import CharTokenizer, GPT2Tokenizer
from labkit.training import Run, RunRecorder
from labstudio import SamplingPlayground
from labstudio.figures.sampling import next_token_logits
from labstudio.visible import token_label
from labstudio.widgets.text_writing import Writing


class Endless(CharTokenizer):
    """Its last id is a character like the others, so that texts of a random model have their full length."""

    def __init__(self, characters: Iterable[str], *, unknown: str | None = None) -> None:
        super().__init__(characters, unknown=unknown)
        self.eos_id = None

    def token_bytes(self, token_id: int) -> bytes:
        return b"$" if token_id == len(self.characters) else super().token_bytes(token_id)


TOKENIZER = Endless.from_text("to be, or not <b>&\n ")


def gpt(tokenizer: Any = TOKENIZER, *, seed: int = 0, context: int = 11) -> GPT:
    torch.manual_seed(seed)
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=context,
        d_model=10,
        n_layers=2,
        n_heads=2,
        dropout=0.5,
    )
    model = GPT(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


@pytest.fixture(autouse=True)
def no_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_OUT", str(tmp_path))


@pytest.fixture
def playground() -> Iterator[Callable[..., SamplingPlayground]]:
    made = []

    def make(model: GPT | None = None, prompt: str = "to be", **options: Any) -> SamplingPlayground:
        made.append(SamplingPlayground(model or gpt(), TOKENIZER, prompt, **{"max_new_tokens": 30} | options))
        return made[-1]

    yield make
    for each in made:
        each.halt()
        assert each.wait(30)


class Slow(GPT):
    """A model that takes a while for each token."""

    def forward(self, *arguments: Any, **options: Any) -> Any:
        time.sleep(0.02)
        return super().forward(*arguments, **options)


def slow() -> Slow:
    model = Slow(gpt().config)
    model.load_state_dict(gpt().state_dict())
    nn.utils.parametrizations.weight_norm(model.head)
    return model


def as_in_a_browser(some: SamplingPlayground, **state: Any) -> None:
    some.set_state(json.loads(json.dumps(state)))


def shown_text(some: SamplingPlayground, column: str = "") -> str:
    return "".join(piece["text"] for piece in getattr(some, f"text{column}")["pieces"])


# What is there at once


def test_the_first_text_and_distribution_are_there_at_once(
    playground: Callable[..., SamplingPlayground], capsys: pytest.CaptureFixture[str]
) -> None:
    some = playground(seed=3)
    assert not some.writing
    config = SampleConfig(max_new_tokens=30, temperature=0.8)
    assert some.config == config
    expected = complete(gpt(), TOKENIZER, "to be", config, seed=3)[0]
    assert some.written == shown_text(some) == expected.text
    assert some.text["finish"] == expected.finish
    assert [piece["ids"] for piece in some.text["pieces"]] == [[token.id] for token in expected.tokens]
    assert capsys.readouterr() == ("", "")


def test_the_repr_is_short_and_says_which_model() -> None:
    some = SamplingPlayground(gpt(), TOKENIZER, max_new_tokens=3)
    assert repr(some) == "SamplingPlayground(this notebook's model)"
    bundle = some._repr_mimebundle_()[0]
    assert bundle["text/plain"] == repr(some)


def test_a_model_without_its_tokenizer_is_refused() -> None:
    with pytest.raises(ValueError, match="give a model and its tokenizer, or neither"):
        SamplingPlayground(gpt())


def test_the_state_is_json_whatever_was_typed(playground: Callable[..., SamplingPlayground]) -> None:
    some = playground()
    some.temperature = float("nan")
    some.top_p = float("inf")
    state = {
        name: value for name, value in some.get_state().items() if name not in {"layout", "_esm", "_css"}
    }
    assert json.loads(json.dumps(state, allow_nan=False))["temperature"] == "nan"


# The distribution


@pytest.mark.parametrize(
    ("setting", "value"),
    [("temperature", 1.7), ("temperature", 0), ("top_k", 4), ("top_p", 0.4), ("min_p", 0.3),
     ("repetition_penalty", 1.9)],
)  # fmt: skip
def test_a_setting_changes_the_bars_as_the_sampler_does_and_back(
    playground: Callable[..., SamplingPlayground], setting: str, value: float
) -> None:
    some = playground()
    before, start = some.distribution, getattr(some, setting)
    as_in_a_browser(some, **{setting: value})
    assert some.distribution != before
    assert getattr(some.config, setting) == value
    ids = TOKENIZER.encode("to be")
    seen = torch.zeros(TOKENIZER.vocab_size, dtype=torch.bool)
    seen[ids] = True
    expected = next_token_probabilities(next_token_logits(some_model(some), ids), some.config, seen)
    for row in some.distribution["rows"]:
        assert row["filtered"] == expected[row["id"]].item()
    assert some.distribution["kept"] == int(expected.count_nonzero())
    assert some.distribution["others"] == TOKENIZER.vocab_size - 12
    for stage, rest in some.distribution["rest"].items():
        shown = sum(row[stage] for row in some.distribution["rows"])
        assert rest == pytest.approx(1 - shown, abs=1e-6)
    as_in_a_browser(some, **{setting: start})
    assert some.distribution == before


def some_model(some: SamplingPlayground) -> GPT:
    return some._choice.load(some.model_name)[0]


def test_settings_at_their_ends_keep_every_token(playground: Callable[..., SamplingPlayground]) -> None:
    some = playground()
    assert some.top_k == some.vocab_size == TOKENIZER.vocab_size
    some.top_p, some.min_p, some.top_k = 1, 0, None
    assert some.config == SampleConfig(max_new_tokens=30, temperature=0.8)
    assert some.distribution["kept"] == TOKENIZER.vocab_size


def test_a_slider_move_does_not_run_the_model(
    playground: Callable[..., SamplingPlayground], monkeypatch: pytest.MonkeyPatch
) -> None:
    some = playground()
    calls = []
    monkeypatch.setattr("labstudio.widgets.playground.next_token_logits", lambda *a: calls.append(a))
    some.temperature = 1.3
    some.top_k = 5
    assert calls == []


def test_a_model_that_was_trained_further_is_read_again(
    playground: Callable[..., SamplingPlayground],
) -> None:
    model = gpt()
    some = playground(model)
    before = some.distribution
    for _ in train(model, TOKENIZER, learning_rate=1e-2).events():
        pass
    some.temperature = 0.9
    some.temperature = 0.8
    assert some.distribution["rows"] != before["rows"]
    with torch.no_grad():
        model.head.weight.data.mul_(0)  # behind autograd's back
    some.write()
    assert some.distribution["entropy"]["raw"] == pytest.approx(torch.tensor(TOKENIZER.vocab_size).log2())


# The text


def test_moving_a_setting_changes_the_text_and_moving_it_back_restores_it(
    playground: Callable[..., SamplingPlayground],
) -> None:
    some = playground()
    before = some.text
    some.temperature = 1.9
    assert some.wait(30)
    assert not some.writing
    assert some.text != before
    assert some.written == complete(gpt(), TOKENIZER, "to be", some.config)[0].text
    some.temperature = 0.8
    assert some.wait(30)
    assert some.text == before


def test_another_seed_writes_another_text_and_leaves_the_bars(
    playground: Callable[..., SamplingPlayground],
) -> None:
    some = playground()
    before, bars = some.written, some.distribution
    some.seed = 1
    some.wait(30)
    assert some.written != before
    assert some.distribution == bars


def test_surprise_and_alternatives_are_the_models_before_any_filter(
    playground: Callable[..., SamplingPlayground],
) -> None:
    some = playground(prompt="t")
    as_in_a_browser(some, top_k=2, temperature=0.4)
    some.wait(30)
    ids = TOKENIZER.encode("t")
    for piece in some.text["pieces"][:8]:
        chances = next_token_logits(some_model(some), ids).softmax(-1)
        assert 2 ** -piece["bits"] == pytest.approx(chances[piece["ids"][0]].item(), rel=1e-3)
        likeliest = chances.topk(5)
        assert [value for _, value in piece["others"]] == pytest.approx(likeliest.values.tolist(), abs=2e-6)
        assert [label for label, _ in piece["others"]] == [
            token_label(TOKENIZER, token) for token in likeliest.indices.tolist()
        ]
        ids += piece["ids"]


def test_tokens_that_make_a_character_together_are_one_piece() -> None:
    tokenizer = GPT2Tokenizer()
    fire = tokenizer.encode("🜂")
    assert len(fire) == 3

    def tokens() -> Generator[Token]:
        for text, token in zip(("", "", "🜂"), fire, strict=True):
            yield Token(0, token, text, -1.0, ((token, -1.0),), None)

    writing = Writing("a", tokens(), tokenizer)
    for _ in fire:
        writing.advance()
    (piece,) = writing.state()["pieces"]
    assert (piece["text"], piece["ids"]) == ("🜂", fire)
    assert piece["bits"] == pytest.approx(3 / math.log(2), rel=1e-4)
    assert piece["others"] == [["\\xf0\\x9f", pytest.approx(math.exp(-1), rel=1e-4)]]
    assert writing.state()["count"] == 3


def test_a_stop_string_ends_the_text(playground: Callable[..., SamplingPlayground]) -> None:
    some = playground(max_new_tokens=200)
    some.stop = ["o"]
    some.wait(30)
    assert some.text["finish"] == "stop"
    assert "o" not in some.written


def test_what_hides_is_shown_as_a_code_point() -> None:
    tokenizer = Endless("a\u202e\u200b<")
    some = SamplingPlayground(gpt(tokenizer), tokenizer, "a\u202e", max_new_tokens=60)
    assert {row["label"] for row in some.distribution["rows"]} >= {"U+202E", "U+200B", "<"}
    assert some.distribution["others"] == 0
    assert set(some.distribution["rest"].values()) == {0.0}
    assert some.text["prompt"] == "aU+202E"
    assert not {"\u202e", "\u200b"} & set(json.dumps(some.text, ensure_ascii=False))
    assert "\u202e" in some.written


# Writing in the background


def test_text_is_streamed_and_can_be_stopped(playground: Callable[..., SamplingPlayground]) -> None:
    some = playground(slow(), max_new_tokens=2)
    seen = []
    some.observe(lambda change: seen.append(len(change["new"]["pieces"])), "text")
    some.max_new_tokens = 1000
    assert some.writing
    deadline = time.monotonic() + 30
    while len(seen) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    as_message(some, "halt")
    assert some.wait(10)
    assert not some.writing
    assert some.text["finish"] == "stopped"
    assert seen == sorted(seen)
    assert 0 < seen[-1] < 1000
    assert len(some.written) == len(shown_text(some)) >= seen[-1]


def as_message(some: SamplingPlayground, action: str) -> None:
    some._handle_custom_msg({"do": action}, [])


def test_a_new_move_replaces_the_text_in_the_making(playground: Callable[..., SamplingPlayground]) -> None:
    some = playground(slow(), max_new_tokens=2)
    some.max_new_tokens = 1000
    time.sleep(0.5)
    some.max_new_tokens = 12
    some.temperature = 1.5
    assert some.wait(20)
    assert some.text["count"] == 12
    assert some.written == complete(gpt(), TOKENIZER, "to be", some.config)[0].text
    assert not some.writing


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_is_restored_after_texts_side_by_side(
    playground: Callable[..., SamplingPlayground], training: bool
) -> None:
    model = gpt().train(training)
    some = playground(model)
    some.compare = True
    some.wait(30)
    assert model.training == training
    assert some.written == complete(gpt(), TOKENIZER, "to be", some.config)[0].text


def test_what_goes_wrong_while_writing_is_said(
    playground: Callable[..., SamplingPlayground], monkeypatch: pytest.MonkeyPatch
) -> None:
    some = playground()

    def failing(*arguments: Any) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("labkit.generation.decode.next_tokens", failing)
        some.temperature = 1.1
        some.wait(30)
    assert some.error == "Writing failed: out of memory"
    assert not some.writing
    some.temperature = 1.2
    some.wait(30)
    assert some.error == ""


# Two settings


def test_two_settings_side_by_side_share_prompt_and_seed(
    playground: Callable[..., SamplingPlayground],
) -> None:
    some = playground(seed=5)
    assert some.text_b == {}
    some.compare = True
    some.temperature_b, some.top_k_b = 1.6, 3
    some.wait(30)
    config = SampleConfig(max_new_tokens=30, temperature=1.6, top_k=3)
    assert shown_text(some, "_b") == complete(gpt(), TOKENIZER, "to be", config, seed=5)[0].text
    assert some.distribution_b["kept"] == 3
    assert some.written == complete(gpt(), TOKENIZER, "to be", some.config, seed=5)[0].text


def test_a_bad_value_in_one_column_leaves_the_other_working(
    playground: Callable[..., SamplingPlayground],
) -> None:
    some = playground()
    some.compare = True
    some.top_p_b = 7
    before = some.distribution_b
    some.temperature = 1.4
    some.wait(30)
    assert some.config.temperature == 1.4
    assert (some.invalid, some.distribution_b) == ("top_p_b", before)
    assert "top_p=7" in some.error


# Draws


def test_draws_add_up_and_follow_the_bars(playground: Callable[..., SamplingPlayground]) -> None:
    some = playground()
    some.top_k = 5
    as_message(some, "draw")
    first = some.counts
    assert first["draws"] == sum(first["counts"]) == 1000
    for row, count in zip(some.distribution["rows"], first["counts"], strict=True):
        assert count == pytest.approx(1000 * row["filtered"], abs=70)
        assert (count > 0) or row["filtered"] < 0.01
    some.draw(500)
    assert some.counts["draws"] == sum(some.counts["counts"]) == 1500
    some.top_k = 4
    assert some.counts == {}


# What cannot be used


BAD = [
    ("temperature", -0.5, "temperature=-0.5 must be at least 0"),
    ("temperature", float("nan"), "temperature=nan must be finite"),
    ("temperature", "warm", "temperature='warm' must be a number"),
    ("temperature", None, "temperature=None must be a number"),
    ("top_k", 0, "top_k=0 must be at least 1"),
    ("top_k", TOKENIZER.vocab_size + 1, f"above {TOKENIZER.vocab_size}, the size of the vocabulary"),
    ("top_k", 2.5, "top_k=2.5 must be a whole number"),
    ("top_p", 0, r"top_p=0 must be in \(0, 1\]"),
    ("top_p", 1.01, r"top_p=1.01 must be in \(0, 1\]"),
    ("min_p", -0.1, r"min_p=-0.1 must be in \[0, 1\]"),
    ("repetition_penalty", 0, "repetition_penalty=0 must be above 0"),
    ("max_new_tokens", 0, "max_new_tokens=0 must be at least 1"),
    ("max_new_tokens", 2001, "max_new_tokens=2001 is above 2000"),
    ("seed", -1, "seed=-1 must be a whole number"),
    ("seed", "", "seed='' must be a whole number"),
    ("prompt", "", "prompt='' is empty; type at least one character"),
    ("prompt", "to ß", "'ß' is not in the alphabet"),
    ("stop", ["ß"], "stop='ß' can never appear"),
    ("stop", [""], "stop: '' must be a text that is not empty"),
]  # fmt: skip


@pytest.mark.parametrize(("trait", "value", "message"), BAD)
def test_bad_input_is_explained_and_the_last_good_state_stays(
    playground: Callable[..., SamplingPlayground], trait: str, value: Any, message: str
) -> None:
    some = playground()
    good, config, text, bars = getattr(some, trait), some.config, some.text, some.distribution
    setattr(some, trait, value)
    assert some.error
    assert re.search(message, some.error)
    assert "SampleConfig" not in some.error
    assert some.invalid == trait
    assert (some.config, some.text, some.distribution, some.writing) == (config, text, bars, False)
    setattr(some, trait, good)
    some.wait(30)
    assert (some.error, some.invalid) == ("", "")
    assert some.text == text


def test_a_bad_beginning_is_explained_too(playground: Callable[..., SamplingPlayground]) -> None:
    some = playground(prompt="")
    assert "is empty" in some.error
    assert (some.written, some.distribution) == ("", {})
    assert some.config.temperature == 0.8
    some.draw()
    some.prompt = "to"
    some.wait(30)
    assert some.written


def test_greedy_and_a_prompt_longer_than_the_context_are_remarked_on(
    playground: Callable[..., SamplingPlayground], recwarn: pytest.WarningsRecorder
) -> None:
    some = playground()
    assert some.notice == ""
    some.temperature = 0
    assert "greedy" in some.notice
    assert some.distribution["kept"] == 1
    some.temperature = 1
    some.prompt = "to be, or not"
    some.wait(30)
    assert some.notice == "The prompt has 13 tokens; the model reads the last 11."
    assert not [warning for warning in recwarn if "prompt" in str(warning.message)]


def test_a_model_that_gives_nan_is_explained(playground: Callable[..., SamplingPlayground]) -> None:
    model = gpt()
    with torch.no_grad():
        model.token_embedding.weight.fill_(torch.nan)
    assert "not finite" in playground(model).error


# The choice of a model


def train(model: GPT, tokenizer: CharTokenizer, **settings: Any) -> Trainer:
    ids = torch.arange(200) % tokenizer.vocab_size
    return Trainer(model, ids, ids, TrainConfig(max_steps=2, batch_size=3, **settings), tokenizer=tokenizer)


def saved_run(name: str, model: GPT, tokenizer: CharTokenizer) -> None:
    trainer = train(model, tokenizer)
    recorder = RunRecorder(trainer, Run.create(name))
    for event in trainer.events():
        recorder(event)


def test_shipped_model_own_runs_and_more_can_be_chosen() -> None:
    other = CharTokenizer.from_text("abcdefghijklmnopqrstuvwxyz \n")
    saved_run("first", gpt(other, seed=4), other)
    Run.create("empty").write_config({})
    loads = []

    def load() -> tuple[GPT, CharTokenizer]:
        loads.append(1)
        return gpt(seed=7), TOKENIZER

    some = SamplingPlayground(gpt(), TOKENIZER, "to be", models={"lazy": load}, max_new_tokens=5)
    assert some.model_names == ["this notebook's model", "lazy", "shipped model", "run first"]
    assert loads == []
    some.model_name = "lazy"
    some.temperature = 1.1
    some.wait(30)
    assert loads == [1]
    assert some.written == complete(gpt(seed=7), TOKENIZER, "to be", some.config)[0].text
    some.top_k = 4
    some.model_name = "run first"
    assert "prompt: characters: ',' is not" not in some.error
    assert (some.vocab_size, some.top_k) == (other.vocab_size, 4)
    assert repr(some) == "SamplingPlayground(run first)"
    some.model_name = "this notebook's model"
    some.wait(30)


def test_without_a_model_the_shipped_one_writes() -> None:
    some = SamplingPlayground(max_new_tokens=3)
    assert some.model_name == "shipped model"
    assert some.error == ""
    assert some.written


def test_top_k_that_keeps_everything_still_does_with_another_vocabulary() -> None:
    other = CharTokenizer.from_text("to be\n")
    models = {"small": (gpt(other), other), "big": (gpt(), TOKENIZER)}
    some = SamplingPlayground(models=models, prompt="to be", max_new_tokens=3)
    assert some.top_k == other.vocab_size
    some.model_name = "big"
    assert some.top_k == TOKENIZER.vocab_size
    some.top_k_b = TOKENIZER.vocab_size - 1
    some.model_name = "small"
    assert (some.top_k, some.top_k_b) == (other.vocab_size, other.vocab_size)
    assert some.error == ""
    some.wait(30)


def test_a_model_that_cannot_be_loaded_is_explained_and_the_one_before_stays() -> None:
    def broken() -> tuple[GPT, CharTokenizer]:
        raise OSError("no such file")

    some = SamplingPlayground(gpt(), TOKENIZER, "to", models={"gone": broken}, max_new_tokens=3)
    for name, message in (
        ("gone", "The model 'gone' cannot be loaded: no such file"),
        ("x", "'x' is not known"),
    ):
        some.model_name = name
        assert message in some.error
        assert some.model_name == "this notebook's model"
    some.temperature = 1.1
    some.wait(30)
    assert some.error == ""


def test_outputs_beyond_the_tokenizer_are_called_by_their_id() -> None:
    config = GPTConfig(
        vocab_size=TOKENIZER.vocab_size + 40, context_length=11, d_model=10, n_layers=1, n_heads=2
    )
    some = SamplingPlayground(GPT(config), TOKENIZER, "to", max_new_tokens=1)
    labels = [row["label"] for row in some.distribution["rows"]]
    assert any(label.startswith("id ") for label in labels)
