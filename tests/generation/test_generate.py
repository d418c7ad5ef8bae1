"""Generation predicts, draws and appends; rows of a batch live apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from labkit import GPT, GPTConfig, SampleConfig
from labkit.generation import generate, generate_batch, next_token_probabilities, stream
from labkit.generation.generate import _draw

VOCAB, CONTEXT = 13, 7


def gpt(**changes: Any) -> GPT:
    sizes = {"vocab_size": VOCAB, "context_length": CONTEXT, "d_model": 10, "n_layers": 2, "n_heads": 2}
    torch.manual_seed(0)
    model = GPT(GPTConfig(**sizes | {"dropout": 0.3, "attention_dropout": 0.3} | changes))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.8)  # large, so that each position predicts something else
    return model.double().eval()


PROMPTS = [
    [3],
    [1, 4, 1, 5, 9],
    [2, 6],
    [5, 3, 5, 8, 9, 7, 9, 3, 2, 3],
]  # the last is longer than the context


def test_greedy_takes_the_likeliest_token_each_time() -> None:
    model, ids = gpt(), [1, 4, 1]
    for _ in range(6):  # past the context: the window slides
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids[-CONTEXT:]]))[0, -1].argmax()))
    assert generate(model, [1, 4, 1], SampleConfig(temperature=0, max_new_tokens=6)).tolist() == ids


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize(
    "config",
    [SampleConfig(max_new_tokens=9), SampleConfig(max_new_tokens=9, temperature=0.6, top_k=5, top_p=0.9)],
)
def test_generate_equals_a_plain_loop(prompt: list[int], config: SampleConfig) -> None:
    model, ids = gpt(), list(prompt)
    generator = torch.Generator().manual_seed(21)
    for _ in range(config.max_new_tokens):
        with torch.no_grad():
            logits = model(torch.tensor([ids[-CONTEXT:]]))[0, -1]
        noise = torch.empty(VOCAB).exponential_(generator=generator)
        ids.append(int((next_token_probabilities(logits.float(), config) / noise).argmax()))
    assert generate(model, prompt, config, seed=21).tolist() == ids


def test_a_row_of_a_ragged_batch_gets_the_text_it_would_get_alone() -> None:
    model, config = gpt(), SampleConfig(max_new_tokens=11, temperature=1.3)
    together = generate_batch(model, PROMPTS, config, seed=40)
    for number, prompt in enumerate(PROMPTS):
        assert together[number].tolist() == generate(model, prompt, config, seed=40 + number).tolist()
        assert together[number][: len(prompt)].tolist() == prompt
        assert len(together[number]) == len(prompt) + 11


def test_padding_of_a_ragged_batch_does_not_reach_the_logits() -> None:
    model = gpt()
    short, long = [2, 6], [1, 4, 1, 5, 9]
    config = SampleConfig(max_new_tokens=5, temperature=0)
    alone = generate(model, short, config)
    for partner in (long, [0] * 6, [VOCAB - 1] * 7):
        assert torch.equal(generate_batch(model, [short, partner], config)[0], alone)


def test_a_token_of_a_prompt_longer_than_the_context_is_out_of_sight() -> None:
    model, config = gpt(), SampleConfig(max_new_tokens=4)
    seen = [5, 8, 9, 7, 9, 3, 2]
    one, two = (generate(model, [first, *seen], config)[-4:] for first in (0, 11))
    assert torch.equal(one, two)


def test_the_same_seed_gives_the_same_text_and_another_seed_another() -> None:
    model, config = gpt(), SampleConfig(max_new_tokens=20)
    texts = [generate(model, [3], config, seed=seed).tolist() for seed in (8, 8, 9)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    "config", [SampleConfig(max_new_tokens=9), SampleConfig(max_new_tokens=30, eos_id=4)]
)
def test_stream_yields_what_generate_returns(config: SampleConfig) -> None:
    model = gpt()
    assert [3, 1, *stream(model, [3, 1], config, seed=2)] == generate(model, [3, 1], config, seed=2).tolist()


def test_stream_draws_a_token_only_when_it_is_asked_for() -> None:
    model = gpt()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    tokens = stream(model, [3], SampleConfig(max_new_tokens=9))
    next(tokens)
    next(tokens)
    assert len(calls) == 2


def test_eos_ends_its_own_row_and_no_other() -> None:
    model = gpt()
    free = generate_batch(model, PROMPTS, SampleConfig(max_new_tokens=25, temperature=8), seed=3)
    ended = generate_batch(model, PROMPTS, SampleConfig(max_new_tokens=25, temperature=8, eos_id=9), seed=3)
    lengths = set()
    for prompt, long, short in zip(PROMPTS, free, ended, strict=True):
        new = long[len(prompt) :].tolist()
        expected = new[: new.index(9) + 1] if 9 in new else new
        assert short[len(prompt) :].tolist() == expected  # eos included, a 9 in the prompt ends nothing
        lengths.add(len(expected))
    assert len(lengths) > 1  # rows did end at different times


def test_generation_stops_when_every_row_has_ended() -> None:
    model = gpt()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    config = SampleConfig(max_new_tokens=500, temperature=8, eos_id=4)
    rows = generate_batch(model, [[3], [5]], config)
    assert len(calls) == max(len(row) - 1 for row in rows) < 500


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_is_restored_and_dropout_is_off_meanwhile(training: bool) -> None:
    model = gpt().train(training)
    config = SampleConfig(max_new_tokens=8, temperature=0)
    expected = generate(gpt(), [3, 1], config)
    assert torch.equal(generate(model, [3, 1], config), expected)
    assert model.training == training
    tokens = stream(model, [3, 1], config)
    next(tokens)
    tokens.close()  # abandoned half-way
    assert model.training == training
    with pytest.raises(ValueError, match="not finite"):
        generate(_broken(model), [3])
    assert model.training == training


def test_no_one_elses_random_numbers_are_touched() -> None:
    model = gpt()
    torch.manual_seed(17)
    before = torch.get_rng_state()
    generate_batch(model, PROMPTS, SampleConfig(max_new_tokens=5), seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_generated_ids_can_be_trained_on() -> None:
    model = gpt()
    ids = generate(model, torch.tensor([3, 1]), SampleConfig(max_new_tokens=5))
    model.loss(ids[None, :-1], ids[None, 1:]).backward()  # inference tensors would fail here
    assert model.token_embedding.weight.grad is not None


def test_the_prompt_is_not_changed() -> None:
    prompt = torch.tensor([3, 1])
    generate(gpt(), prompt, SampleConfig(max_new_tokens=5))
    assert prompt.tolist() == [3, 1]


def _broken(model: GPT) -> GPT:
    with torch.no_grad():
        model.norm.weight[0] = torch.nan
    return model


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "generate: there are no prompts; give at least one"),
        ([[]], r"generate: prompt 0 has shape \(0,\); expected a list of at least one token id. .*eos_id"),
        ([[3], []], r"generate: prompt 1 has shape \(0,\)"),
        ([[[1, 2], [3, 4]]], r"generate: prompt 0 has shape \(2, 2\)"),
        ([torch.tensor(3)], r"generate: prompt 0 has shape \(\)"),
        ([[3, VOCAB]], r"ids range from 3 to 13; this model knows 0 to 12"),
        ([[-1]], r"ids range from -1 to -1"),
        ([[0.5]], r"ids are torch.float32; expected whole numbers"),
        ([[VOCAB, *[1] * 10]], r"ids range from 1 to 13; this model knows"),  # even out of sight
        (["To be"], r"generate: prompt 0 is 'To be'; expected a list of token ids. .*tokenizer.encode"),
        ([[1], ["a", "b"]], r"generate: prompt 1 is \['a', 'b'\]; expected a list of token ids"),
        ([[[1, 2], [3]]], r"generate: prompt 0 is \[\[1, 2\], \[3\]\]; expected a list of token ids"),
    ],
)
def test_prompts_that_cannot_be_continued_are_refused(prompts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate_batch(gpt(), prompts)


def test_logits_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"logits are not finite. Did its training diverge"):
        generate(_broken(gpt()), [3])


def test_draws_follow_the_probabilities() -> None:
    """Chi-square of 120,000 draws; a mass of zero is never drawn."""
    probabilities = torch.tensor([0.5, 0.25, 0.0, 0.15, 0.07, 0.02, 0.01])
    rows, rounds = 1000, 120
    generators = [torch.Generator().manual_seed(seed) for seed in range(rows)]
    drawn = [_draw(probabilities.expand(rows, -1), generators) for _ in range(rounds)]
    counts = torch.tensor(drawn).flatten().bincount(minlength=7)
    assert counts.sum() == rows * rounds
    assert counts[2] == 0
    some = probabilities > 0
    expected = probabilities[some].double() / probabilities[some].double().sum() * rows * rounds
    assert stats.chisquare(counts[some].numpy(), expected.numpy()).pvalue > 0.001


def test_rows_with_neighbouring_seeds_are_independent() -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    probabilities = torch.full((2, 4), 0.25)
    pairs = torch.tensor([_draw(probabilities, generators) for _ in range(20_000)])
    table = (pairs[:, 0] * 4 + pairs[:, 1]).bincount(minlength=16).reshape(4, 4)
    assert stats.chi2_contingency(table.numpy()).pvalue > 0.001


def test_a_certain_token_is_always_drawn() -> None:
    generator = torch.Generator().manual_seed(0)
    certain: Tensor = torch.tensor([[0.0, 0.0, 1.0]])
    assert {_draw(certain, [generator])[0] for _ in range(5000)} == {2}
