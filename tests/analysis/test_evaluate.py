"""Measures of a model and of its text, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from labkit import GPT, GPTConfig
from labkit.analysis import bits_per_byte, distinct_n, entropy, evaluate_loss, perplexity

WINDOWS, SEQ, VOCAB = 5, 7, 13


def gpt() -> GPT:
    torch.manual_seed(0)
    model = GPT(
        GPTConfig(vocab_size=VOCAB, context_length=9, d_model=10, n_layers=2, n_heads=2, dropout=0.4)
    ).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


def windows() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    inputs, targets = torch.randint(VOCAB, (2, WINDOWS, SEQ))
    targets[1, 3:] = -100
    targets[4] = -100  # a batch of nothing but padding, where batches have 2 rows
    return inputs, targets


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_the_loss_is_the_mean_over_real_targets_whatever_the_batch_size(batch_size: int) -> None:
    model = gpt().eval()
    inputs, targets = windows()
    log_probabilities = model(inputs).detach().log_softmax(-1)
    terms = [
        -log_probabilities[w, t, targets[w, t]].item()
        for w in range(WINDOWS)
        for t in range(SEQ)
        if targets[w, t] != -100
    ]
    assert len(terms) == 3 * SEQ + 3
    assert evaluate_loss(model, inputs, targets, batch_size=batch_size) == pytest.approx(
        sum(terms) / len(terms), rel=1e-12
    )


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_turns_dropout_off_and_restores_the_mode(training: bool) -> None:
    model, (inputs, targets) = gpt().train(training), windows()
    losses = {evaluate_loss(model, inputs, targets) for _ in range(2)}
    assert len(losses) == 1
    assert model.training == training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_draws_no_random_numbers(training: bool) -> None:
    model, (inputs, targets) = gpt().train(training), windows()
    before = torch.get_rng_state()
    evaluate_loss(model, inputs, targets)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_mode_is_restored_after_an_error() -> None:
    model, (inputs, targets) = gpt().train(), windows()
    with pytest.raises(ValueError, match="GPT: ids range"):
        evaluate_loss(model, inputs + VOCAB, targets)
    assert model.training


@pytest.mark.parametrize(
    ("inputs", "targets"),
    [
        (torch.zeros(0, SEQ, dtype=torch.long), torch.zeros(0, SEQ, dtype=torch.long)),
        (torch.zeros(2, SEQ, dtype=torch.long), torch.full((2, SEQ), -100)),
    ],
)
def test_nothing_to_predict_is_an_error(inputs: torch.Tensor, targets: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="evaluate_loss: there is no target to predict"):
        evaluate_loss(gpt(), inputs, targets)


def test_perplexity_of_a_fair_die_is_its_number_of_sides() -> None:
    assert perplexity(math.log(6)) == pytest.approx(6)
    assert perplexity(0.0) == 1
    assert perplexity(1e4) == math.inf  # not an OverflowError


def test_bits_per_byte_by_hand() -> None:
    # 3 tokens of ln 4 nats are 6 bits; they spell 12 bytes
    assert bits_per_byte(math.log(4), 3, 12) == pytest.approx(0.5)
    # uniform over 256 bytes, one token a byte: 8 bits
    assert bits_per_byte(math.log(256), 7, 7) == pytest.approx(8)


@pytest.mark.parametrize(("tokens", "n_bytes"), [(0, 5), (5, 0), (-1, 5)])
def test_bits_per_byte_of_nothing_is_an_error(tokens: int, n_bytes: int) -> None:
    with pytest.raises(ValueError, match=f"tokens={tokens} and n_bytes={n_bytes} must be at least 1"):
        bits_per_byte(1.0, tokens, n_bytes)


def test_entropy_by_hand() -> None:
    rows = torch.tensor([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.5, 0.25, 0.25, 0]])
    expected = torch.tensor([0, 1, 2, 1.5]) * math.log(2)
    torch.testing.assert_close(entropy(rows), expected)
    assert entropy(rows[None, None]).shape == (1, 1, 4)


@pytest.mark.parametrize(
    ("items", "n", "share"),
    [
        ("abab", 1, 2 / 4),
        ("abab", 2, 2 / 3),  # ab, ba, ab
        ("abab", 4, 1),
        ([5, 5, 5, 5, 5], 2, 1 / 4),
        ([1, 2, 3], 3, 1),
        (["to", "be", "or", "not", "to", "be"], 2, 4 / 5),
    ],
)
def test_distinct_n_by_hand(items: object, n: int, share: float) -> None:
    assert distinct_n(items, n) == pytest.approx(share)  # type: ignore[arg-type]


@pytest.mark.parametrize(("items", "n"), [("abc", 4), ("", 1), ("abc", 0), ("abc", -1)])
def test_distinct_n_of_too_little_is_an_error(items: str, n: int) -> None:
    with pytest.raises(
        ValueError, match=f"distinct_n: n={n} must be at least 1 and at most the {len(items)}"
    ):
        distinct_n(items, n)
