"""The distribution that tokens are drawn from: temperature, top-k, top-p."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from labkit import SampleConfig
from labkit.generation import apply_temperature, next_token_probabilities, top_k_filter, top_p_filter

transformers = pytest.importorskip("transformers")

BATCH, VOCAB = 3, 17


def random_logits(seed: int, *, ties: bool) -> Tensor:
    logits = 3 * torch.randn(BATCH, VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return logits.round() if ties else logits


def kept(filtered: Tensor) -> Tensor:
    return filtered > -torch.inf


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.9])
def test_temperature_equals_transformers(temperature: float, ties: bool) -> None:
    logits = random_logits(0, ties=ties)
    theirs = transformers.TemperatureLogitsWarper(temperature)(None, logits)
    torch.testing.assert_close(apply_temperature(logits, temperature), theirs)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("k", [1, 2, 5, VOCAB, VOCAB + 4])
def test_top_k_equals_transformers(k: int, ties: bool) -> None:
    for seed in range(20):
        logits = random_logits(seed, ties=ties)
        assert torch.equal(top_k_filter(logits, k), transformers.TopKLogitsWarper(k)(None, logits))


@pytest.mark.parametrize("p", [0.01, 0.3, 0.8, 0.99])
def test_top_p_equals_transformers(p: float) -> None:
    for seed in range(20):
        logits = random_logits(seed, ties=False)
        assert torch.equal(top_p_filter(logits, p), transformers.TopPLogitsWarper(p)(None, logits))


@pytest.mark.parametrize("p", [0.01, 0.3, 0.8, 0.99])
def test_top_p_with_ties_keeps_as_many_and_as_likely_tokens_as_transformers(p: float) -> None:
    """Which of several equal tokens stays is free; how many stay, and how likely they are, is not."""
    for seed in range(20):
        logits = random_logits(seed, ties=True)
        theirs = transformers.TopPLogitsWarper(p)(None, logits)
        assert torch.equal(top_p_filter(logits, p).sort(-1).values, theirs.sort(-1).values)


def test_all_together_equal_transformers_in_the_same_order() -> None:
    config = SampleConfig(temperature=0.7, top_k=9, top_p=0.85)
    for seed in range(20):
        logits = random_logits(seed, ties=False)
        theirs = transformers.TemperatureLogitsWarper(0.7)(None, logits)
        theirs = transformers.TopKLogitsWarper(9)(None, theirs)
        theirs = transformers.TopPLogitsWarper(0.85)(None, theirs)
        torch.testing.assert_close(next_token_probabilities(logits, config), theirs.softmax(-1))


def test_the_order_of_the_filters_can_be_seen() -> None:
    """top-p after top-k counts what top-k left: 0.5 of (0.5, 0.3) is 0.625 of the mass, so one stays."""
    logits = torch.tensor([0.5, 0.3, 0.1, 0.1]).log()
    together = next_token_probabilities(logits, SampleConfig(top_k=2, top_p=0.6))
    assert together.tolist() == [1, 0, 0, 0]
    assert next_token_probabilities(logits, SampleConfig(top_p=0.6)).tolist() == pytest.approx(
        [0.625, 0.375, 0, 0]
    )


logit_rows = st.lists(
    st.floats(-20, 20, allow_nan=False, width=32) | st.integers(-3, 3).map(float), min_size=1, max_size=12
).map(lambda values: torch.tensor(values, dtype=torch.float64))


@given(logit_rows, st.floats(0.01, 1))
def test_top_p_keeps_the_smallest_set_with_mass_p(logits: Tensor, p: float) -> None:
    probabilities = logits.softmax(-1)
    stays = kept(top_p_filter(logits, p))
    count, mass = int(stays.sum()), probabilities[stays].sum().item()
    ordered = probabilities.sort(descending=True).values
    assert mass >= p - 1e-12
    assert count == 1 or p == 1 or ordered[: count - 1].sum() < p + 1e-12  # no smaller set would do
    assert mass == pytest.approx(ordered[:count].sum().item())  # and it holds the likeliest
    assert torch.equal(top_p_filter(logits, p)[stays], logits[stays])


@given(logit_rows, st.integers(1, 15))
def test_top_k_keeps_k_and_the_ties_of_the_kth(logits: Tensor, k: int) -> None:
    stays = kept(top_k_filter(logits, k))
    threshold = sorted(logits.tolist(), reverse=True)[min(k, len(logits)) - 1]
    assert torch.equal(stays, logits >= threshold)
    assert int(stays.sum()) >= min(k, len(logits))
    assert torch.equal(top_k_filter(logits, k)[stays], logits[stays])


@given(logit_rows, st.floats(0.01, 1), st.floats(0.01, 1), st.integers(1, 15), st.integers(1, 15))
def test_a_larger_p_or_k_never_drops_a_token(logits: Tensor, p: float, q: float, k: int, m: int) -> None:
    low, high = sorted((p, q))
    assert (kept(top_p_filter(logits, low)) <= kept(top_p_filter(logits, high))).all()
    low, high = sorted((k, m))
    assert (kept(top_k_filter(logits, low)) <= kept(top_k_filter(logits, high))).all()


configs = st.builds(
    SampleConfig,
    temperature=st.just(0.0) | st.floats(0.05, 5),
    top_k=st.none() | st.integers(1, 15),
    top_p=st.none() | st.floats(0.01, 1),
)


@given(logit_rows, configs)
def test_probabilities_sum_to_one_and_keep_the_order(logits: Tensor, config: SampleConfig) -> None:
    probabilities = next_token_probabilities(logits, config)
    assert probabilities.shape == logits.shape
    assert probabilities.sum().item() == pytest.approx(1)
    assert (probabilities >= 0).all()
    assert probabilities[logits.argmax()] == probabilities.max()
    left = probabilities > 0
    order = logits[left].argsort(descending=True)
    assert (probabilities[left][order].diff() <= 1e-15).all()


@given(logit_rows, st.floats(0.1, 3), st.floats(0.1, 3))
def test_a_higher_temperature_never_sharpens(logits: Tensor, one: float, two: float) -> None:
    low, high = sorted((one, two))
    sharp = next_token_probabilities(logits, SampleConfig(temperature=low)).max()
    flat = next_token_probabilities(logits, SampleConfig(temperature=high)).max()
    assert sharp >= flat - 1e-12


def test_each_row_is_filtered_by_itself() -> None:
    logits = random_logits(1, ties=False).reshape(BATCH, 1, VOCAB)
    config = SampleConfig(temperature=0.8, top_k=6, top_p=0.7)
    rows = torch.stack([next_token_probabilities(row, config) for row in logits])
    torch.testing.assert_close(next_token_probabilities(logits, config), rows)


def test_temperature_zero_is_the_limit_of_small_temperatures() -> None:
    logits = random_logits(2, ties=False)
    zero = next_token_probabilities(logits, SampleConfig(temperature=0, top_k=3, top_p=0.5))
    torch.testing.assert_close(zero, next_token_probabilities(logits, SampleConfig(temperature=1e-3)))


@pytest.mark.parametrize("ties", [False, True])
def test_filters_leave_the_logits_they_are_given_unchanged(ties: bool) -> None:
    logits = random_logits(3, ties=ties)
    before = logits.clone()
    next_token_probabilities(logits, SampleConfig(temperature=0.5, top_k=4, top_p=0.5))
    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x: apply_temperature(x, 0.0),
            "apply_temperature: temperature=0.0 must be a finite number above",
        ),
        (lambda x: apply_temperature(x, -1.0), "temperature=-1.0 must be a finite number above 0"),
        (lambda x: apply_temperature(x, math.nan), "temperature=nan must be a finite number above 0"),
        (lambda x: apply_temperature(x, math.inf), "temperature=inf must be a finite number above 0"),
        (lambda x: top_k_filter(x, 0), "top_k_filter: k=0 must be at least 1"),
        (lambda x: top_k_filter(x, -2), "top_k_filter: k=-2 must be at least 1"),
        (lambda x: top_p_filter(x, 0.0), r"top_p_filter: p=0.0 must be in \(0, 1\]"),
        (lambda x: top_p_filter(x, 1.1), r"top_p_filter: p=1.1 must be in \(0, 1\]"),
        (lambda x: top_p_filter(x, math.nan), r"top_p_filter: p=nan must be in \(0, 1\]"),
    ],
)
def test_settings_out_of_range_are_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(random_logits(0, ties=False))  # type: ignore[operator]
