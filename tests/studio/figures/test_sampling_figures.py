"""The three stages of a distribution: what is drawn from, what the numbers above it say, how it is drawn."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from labkit import GPT, GPTConfig, SampleConfig
from labkit.generation import next_token_probabilities
from labkit.text import CharTokenizer, GPT2Tokenizer
from labstudio.figures import new_figure, next_token_table, sampling_stages, stage_bars
from labstudio.figures.sampling import draw_counts, next_token_logits
from labstudio.visible import token_label

TOKENIZER = CharTokenizer.from_text("to be, or not <b>&\n ")
VOCAB = 13

CONFIGS = st.builds(
    SampleConfig,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.9]),
    top_k=st.none() | st.integers(1, VOCAB),
    top_p=st.none() | st.floats(0.05, 1),
    min_p=st.none() | st.floats(0, 1),
    repetition_penalty=st.sampled_from([0.7, 1.0, 1.8]),
)


def some_logits(seed: int = 0, vocab: int = VOCAB) -> torch.Tensor:
    return 2 * torch.randn(vocab, generator=torch.Generator().manual_seed(seed))


def some_seen() -> torch.Tensor:
    return torch.arange(VOCAB) % 3 == 1


@given(config=CONFIGS, seed=st.integers(0, 99), rows=st.integers(1, VOCAB + 4))
def test_the_last_stage_is_what_tokens_are_drawn_from(config: SampleConfig, seed: int, rows: int) -> None:
    logits = some_logits(seed)
    stages = sampling_stages(logits, config, some_seen(), rows=rows)
    expected = next_token_probabilities(logits, config, some_seen())
    assert torch.equal(stages.probabilities["filtered"], expected)
    assert stages.kept == int(expected.count_nonzero())
    assert list(stages.table.columns) == ["id", "raw", "tempered", "filtered"]
    assert len(stages.table) == min(rows, VOCAB)
    for name in ("raw", "tempered", "filtered"):
        whole = stages.probabilities[name]
        assert stages.table[name].tolist() == whole[stages.table["id"].tolist()].tolist()
        assert float(whole.sum()) == pytest.approx(1, abs=1e-5)


@given(config=CONFIGS, seed=st.integers(0, 99))
def test_entropy_and_effective_number_are_scipys(config: SampleConfig, seed: int) -> None:
    stages = sampling_stages(some_logits(seed), config, some_seen())
    for name, whole in stages.probabilities.items():
        expected = scipy.stats.entropy(whole.double().numpy(), base=2)
        assert stages.entropy[name] == pytest.approx(expected, abs=1e-6)
        assert stages.effective[name] == pytest.approx(2**expected, abs=1e-4)


def test_settings_touch_only_their_stage_and_those_after_it() -> None:
    logits = some_logits()
    plain = sampling_stages(logits, SampleConfig())
    assert plain.table["raw"].tolist() == plain.table["filtered"].tolist()
    assert plain.table["raw"].is_monotonic_decreasing
    torch.testing.assert_close(plain.probabilities["raw"], logits.softmax(-1))
    warm = sampling_stages(logits, SampleConfig(temperature=1.7))
    assert warm.table["raw"].tolist() == plain.table["raw"].tolist()
    torch.testing.assert_close(warm.probabilities["tempered"], (logits / 1.7).softmax(-1))
    cut = sampling_stages(logits, SampleConfig(temperature=1.7, top_k=4))
    assert cut.table["tempered"].tolist() == warm.table["tempered"].tolist()
    assert (cut.table["filtered"] > 0).tolist() == [True] * 4 + [False] * 8
    assert cut.kept == 4


def test_the_penalty_is_part_of_the_second_stage() -> None:
    config = SampleConfig(repetition_penalty=3.0)
    stages = sampling_stages(some_logits(), config, some_seen())
    seen = some_seen()
    assert bool((stages.probabilities["tempered"][seen] < stages.probabilities["raw"][seen]).all())


def test_a_uniform_distribution_is_worth_its_vocabulary_and_a_greedy_one_a_single_token() -> None:
    stages = sampling_stages(torch.zeros(VOCAB), SampleConfig(temperature=0))
    assert stages.entropy["raw"] == pytest.approx(math.log2(VOCAB))
    assert stages.effective == pytest.approx({"raw": VOCAB, "tempered": 1, "filtered": 1})
    assert stages.kept == 1


def test_ties_stand_in_the_order_of_their_ids() -> None:
    logits = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0])
    assert sampling_stages(logits, SampleConfig()).table["id"].tolist() == [1, 3, 4, 0, 2]


def test_half_precision_is_worked_on_in_float32() -> None:
    logits = some_logits().bfloat16()
    halved = sampling_stages(logits, SampleConfig(temperature=0.7)).table
    pd.testing.assert_frame_equal(
        halved, sampling_stages(logits.float(), SampleConfig(temperature=0.7)).table
    )


def test_what_cannot_be_staged_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 13\); expected \(vocab,\)"):
        sampling_stages(torch.zeros(2, VOCAB), SampleConfig())
    with pytest.raises(ValueError, match="logits are not finite"):
        sampling_stages(torch.full((VOCAB,), torch.nan), SampleConfig())
    with pytest.raises(ValueError, match="k=14 must be a whole number from 1"):
        sampling_stages(torch.zeros(VOCAB), SampleConfig(top_k=14))


# Draws


def test_draws_follow_the_distribution_and_the_seed() -> None:
    whole = sampling_stages(some_logits(), SampleConfig(top_k=6)).probabilities["filtered"]
    counts = draw_counts(whole, 4000, seed=5)
    assert int(counts.sum()) == 4000
    assert counts[whole == 0].tolist() == [0] * 7
    kept = whole > 0
    expected = (whole[kept].double() / whole[kept].double().sum() * 4000).numpy()
    assert scipy.stats.chisquare(counts[kept].numpy(), expected).pvalue > 1e-3
    assert torch.equal(counts, draw_counts(whole, 4000, seed=5))
    assert not torch.equal(counts, draw_counts(whole, 4000, seed=6))


# From a model


def gpt() -> GPT:
    torch.manual_seed(0)
    size = TOKENIZER.vocab_size
    model = GPT(GPTConfig(vocab_size=size, context_length=7, d_model=10, n_layers=2, n_heads=2, dropout=0.5))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


@pytest.mark.parametrize("training", [True, False])
def test_logits_come_without_dropout_and_the_mode_is_restored(training: bool) -> None:
    model = gpt().train(training)
    one, two = (next_token_logits(model, [3, 1, 4]) for _ in range(2))
    assert torch.equal(one, two)
    assert model.training == training
    with torch.no_grad():
        expected = model.eval()(torch.tensor([[3, 1, 4]]))[0, -1]
    assert torch.equal(one, expected)


def test_the_mode_is_restored_when_the_model_fails() -> None:
    model = gpt().train()
    with pytest.raises(ValueError, match="Was the text encoded with another tokenizer"):
        next_token_logits(model, [TOKENIZER.vocab_size])
    assert model.training


def test_the_table_is_the_models_distribution_likeliest_first() -> None:
    model = gpt()
    table = next_token_table(model, TOKENIZER, "to be", SampleConfig(), rows=100)
    expected = next_token_logits(model, TOKENIZER.encode("to be")).softmax(-1)
    assert len(table) == TOKENIZER.vocab_size
    assert table["probability"].sum() == pytest.approx(1)
    assert table["probability"].is_monotonic_decreasing
    for token, probability in table.itertuples(index=False):
        number = TOKENIZER.eos_id if token == "<|endoftext|>" else TOKENIZER.encode(token)[0]
        assert probability == pytest.approx(expected[number].item(), rel=1e-5)


def test_settings_shape_the_table() -> None:
    model = gpt()
    three = next_token_table(model, TOKENIZER, "to", SampleConfig(top_k=3))
    assert len(three) == 3
    assert (three["probability"] > 0).all()
    assert three["probability"].sum() == pytest.approx(1)
    greedy = next_token_table(model, TOKENIZER, "to", SampleConfig(temperature=0))
    assert greedy["probability"].tolist() == [1.0]
    plain, lowered = (
        next_token_table(
            model, TOKENIZER, "to", SampleConfig(repetition_penalty=penalty), rows=100
        ).set_index("token")["probability"]["o"]
        for penalty in (1.0, 5.0)
    )
    assert lowered < plain


def test_a_prompt_longer_than_the_context_is_read_from_its_end() -> None:
    model = gpt()
    long, end, less = (
        next_token_table(model, TOKENIZER, "not to be, or"[-length:], SampleConfig()) for length in (13, 7, 6)
    )
    pd.testing.assert_frame_equal(long, end)
    assert not long.equals(less)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="the prompt is empty; give at least one character"):
        next_token_table(gpt(), TOKENIZER, "", SampleConfig())


# The figure


def test_bars_have_the_tables_lengths_and_what_is_cut_is_hatched() -> None:
    stages = sampling_stages(some_logits(), SampleConfig(temperature=1.4, top_k=5), rows=9)
    figure = new_figure(3)
    stage_bars(figure.axes, stages, TOKENIZER)
    for axes, name in zip(figure.axes, ("raw", "tempered", "filtered"), strict=True):
        solid = [bar.get_width() for bar in axes.patches if not bar.get_hatch()]
        np.testing.assert_array_equal(solid, stages.table[name])
        bits, effective = stages.entropy[name], stages.effective[name]
        assert axes.get_title().endswith(f"{bits:.2f} bits, like {effective:.1f} equal tokens")
        assert axes.yaxis_inverted()
        assert axes.get_xlabel() == "probability"
    hatched = [bar.get_width() for bar in figure.axes[2].patches if bar.get_hatch()]
    assert hatched == [0.0] * 5 + stages.table["tempered"].tolist()[5:]
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    assert figure.axes[2].get_legend() is not None


def test_without_a_cut_there_is_no_legend_and_two_axes_are_refused() -> None:
    stages = sampling_stages(some_logits(), SampleConfig())
    figure = new_figure(3)
    stage_bars(figure.axes, stages, TOKENIZER)
    assert figure.axes[2].get_legend() is None
    with pytest.raises(ValueError, match="got 2 axes; expected 3"):
        stage_bars(figure.axes[:2], stages, TOKENIZER)


@pytest.mark.parametrize(
    ("sign", "seen"),
    [("\u202e", "U+202E"), ("\u200b", "U+200B"), ("\u0301", "U+0301"), ("\x00", "U+0000"), ("\r", "U+000D"),
     ("\xa0", "U+00A0"), ("\u2028", "U+2028"), ("é", "é"), ("ש", "ש"), (" ", " "), ("\n", "\n"), ("<", "<")],
)  # fmt: skip
def test_labels_hide_nothing(sign: str, seen: str) -> None:
    tokenizer = CharTokenizer(sign)
    assert token_label(tokenizer, 0) == seen


def test_labels_show_the_bytes_of_a_cut_character() -> None:
    tokenizer = GPT2Tokenizer()
    assert [token_label(tokenizer, token) for token in tokenizer.encode(" 🜁")][-1].startswith("\\x")
    assert [token_label(tokenizer, token) for token in tokenizer.encode(" the")] == [" the"]
