"""The distribution that tokens are drawn from: each filter, and all together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_settings import DTYPES, VOCAB, configs, drawn_table, random_logits, random_text, tables
from torch import Tensor

from labkit import SampleConfig
from labkit.generation import (
    apply_repetition_penalty,
    apply_temperature,
    min_p_filter,
    next_token_probabilities,
    next_tokens,
    top_k_filter,
    top_p_filter,
)

transformers = pytest.importorskip("transformers")


def kept(filtered: Tensor) -> Tensor:
    return filtered > -torch.inf


# What transformers computes


def both(ours: Callable[[Tensor], Tensor], theirs: Any, *, ties: bool, dtype: torch.dtype) -> Any:
    for seed in range(20):
        logits = random_logits(seed, ties=ties, dtype=dtype)
        filtered = ours(logits)
        assert filtered.dtype == dtype
        yield filtered, theirs(None, logits.clone())


EQUAL = {
    **{
        f"temperature {t}": (lambda x, t=t: apply_temperature(x, t), transformers.TemperatureLogitsWarper(t))
        for t in (0.3, 1.0, 1.9)
    },
    **{
        f"top-k {k}": (lambda x, k=k: top_k_filter(x, k), transformers.TopKLogitsWarper(k))
        for k in (1, 2, 5, VOCAB - 1, VOCAB)
    },
    **{
        f"min-p {p}": (lambda x, p=p: min_p_filter(x, p), transformers.MinPLogitsWarper(p))
        for p in (0.0, 0.02, 0.3, 0.9, 1.0)
    },
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("name", EQUAL)
def test_filters_equal_transformers(name: str, ties: bool, dtype: torch.dtype) -> None:
    ours, theirs = EQUAL[name]
    for a, b in both(ours, theirs, ties=ties, dtype=dtype):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.01, 0.3, 0.8, 0.99, 1.0])
def test_top_p_equals_transformers(p: float, dtype: torch.dtype) -> None:
    for a, b in both(lambda x: top_p_filter(x, p), transformers.TopPLogitsWarper(p), ties=False, dtype=dtype):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.01, 0.3, 0.8, 0.99, 1.0])
def test_top_p_with_ties_keeps_as_many_and_as_likely_tokens_as_transformers(
    p: float, dtype: torch.dtype
) -> None:
    """Which of several equal tokens stays may differ; how many stay, and how likely they are, may not."""
    for a, b in both(lambda x: top_p_filter(x, p), transformers.TopPLogitsWarper(p), ties=True, dtype=dtype):
        assert torch.equal(a.sort(-1).values, b.sort(-1).values)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("penalty", [0.6, 1.0, 1.3, 4.0])
def test_repetition_penalty_equals_transformers(penalty: float, ties: bool, dtype: torch.dtype) -> None:
    theirs = transformers.RepetitionPenaltyLogitsProcessor(penalty)
    for seed in range(20):
        logits = random_logits(seed, ties=ties, dtype=dtype)
        ids, seen = random_text(seed)
        assert torch.equal(apply_repetition_penalty(logits, seen, penalty), theirs(ids, logits.clone()))


ALL = SampleConfig(repetition_penalty=1.4, temperature=0.7, top_k=9, top_p=0.85, min_p=0.1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_together_equal_transformers_in_the_documented_order(dtype: torch.dtype) -> None:
    for seed in range(50):
        logits = random_logits(seed, ties=False, dtype=dtype)
        ids, seen = random_text(seed)
        theirs = transformers.RepetitionPenaltyLogitsProcessor(1.4)(ids, logits.clone())
        for each in (
            transformers.TemperatureLogitsWarper(0.7),
            transformers.TopKLogitsWarper(9),
            transformers.TopPLogitsWarper(0.85),
            transformers.MinPLogitsWarper(0.1),
        ):
            theirs = each(ids, theirs)
        torch.testing.assert_close(next_token_probabilities(logits, ALL, seen), theirs.softmax(-1))


# What each filter promises, ties included

logit_rows = st.lists(
    st.floats(-20, 20, allow_nan=False, width=32) | st.integers(-3, 3).map(float), min_size=1, max_size=12
).map(lambda values: torch.tensor(values, dtype=torch.float64))


def test_equal_tokens_at_the_border_of_top_p_stay_in_the_order_of_their_ids() -> None:
    logits = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 1.0])
    assert kept(top_p_filter(logits, 0.5)).tolist() == [False, True, True, False, True, False]


@pytest.mark.parametrize(("p", "count"), [(0.25, 1), (0.2501, 2), (0.5, 2), (0.75, 3), (0.7501, 4)])
def test_top_p_stops_as_soon_as_the_mass_is_reached_exactly(p: float, count: int) -> None:
    assert kept(top_p_filter(torch.zeros(4), p)).tolist() == [True] * count + [False] * (4 - count)


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


@given(logit_rows, st.data())
def test_top_k_keeps_k_and_the_ties_of_the_kth(logits: Tensor, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(logits)))
    stays = kept(top_k_filter(logits, k))
    assert torch.equal(stays, logits >= sorted(logits.tolist(), reverse=True)[k - 1])
    assert int(stays.sum()) >= k
    assert torch.equal(top_k_filter(logits, k)[stays], logits[stays])


@given(logit_rows, st.floats(0, 1))
def test_min_p_keeps_what_is_at_least_p_times_as_likely_as_the_likeliest(logits: Tensor, p: float) -> None:
    stays = kept(min_p_filter(logits, p))
    ratio = (logits - logits.max()).exp()
    assert stays[ratio >= p + 1e-12].all()
    assert not stays[ratio < p - 1e-12].any()
    assert torch.equal(min_p_filter(logits, p)[stays], logits[stays])


@given(logit_rows, st.floats(1, 10))
def test_a_penalty_above_1_never_makes_a_seen_token_likelier(logits: Tensor, penalty: float) -> None:
    seen = torch.arange(len(logits)) % 3 == 1
    lowered = apply_repetition_penalty(logits, seen, penalty)
    assert (lowered <= logits).all()
    assert torch.equal(lowered[~seen], logits[~seen])


@given(logit_rows, st.floats(0.01, 1), st.floats(0.01, 1), st.data())
def test_a_larger_p_or_k_and_a_smaller_min_p_never_drop_a_token(
    logits: Tensor, p: float, q: float, data: st.DataObject
) -> None:
    low, high = sorted((p, q))
    assert (kept(top_p_filter(logits, low)) <= kept(top_p_filter(logits, high))).all()
    assert (kept(min_p_filter(logits, high)) <= kept(min_p_filter(logits, low))).all()
    sizes = st.integers(1, len(logits))
    small, large = sorted((data.draw(sizes), data.draw(sizes)))
    assert (kept(top_k_filter(logits, small)) <= kept(top_k_filter(logits, large))).all()


@given(logit_rows, st.floats(0.1, 3), st.floats(0.1, 3))
def test_a_higher_temperature_never_sharpens(logits: Tensor, one: float, two: float) -> None:
    low, high = sorted((one, two))
    sharp = next_token_probabilities(logits, SampleConfig(temperature=low)).max()
    flat = next_token_probabilities(logits, SampleConfig(temperature=high)).max()
    assert sharp >= flat - 1e-12


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [1e-12, 1e-42, 1e-50, 5e-324])
def test_the_smallest_top_p_keeps_the_likeliest_token(p: float, dtype: torch.dtype) -> None:
    logits = random_logits(4, ties=False, dtype=dtype)
    stays = kept(top_p_filter(logits, p))
    assert torch.equal(stays, logits == logits.amax(-1, keepdim=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shares", "p", "count"),
    [
        ([0.5, 0.3, 0.2], 0.8, 2),  # in float32 1 - 0.2 is 0.79999995
        ([0.4, 0.3, 0.2, 0.1], 0.7, 2),
        ([0.4, 0.3, 0.2, 0.1], 0.9, 3),
        ([0.6, 0.1, 0.1, 0.1, 0.1], 0.7, 2),
        ([0.5, 0.3, 0.2], 0.82, 3),
        ([0.5, 0.3, 0.2], 0.78, 2),
    ],
)
def test_a_sum_that_is_p_but_for_rounding_is_enough(
    shares: list[float], p: float, count: int, dtype: torch.dtype
) -> None:
    logits = torch.tensor(shares, dtype=torch.float64).log().to(dtype)
    for shift in (0, 1.5, -3):
        assert int(kept(top_p_filter(logits + shift, p)).sum()) == count


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("p", [0.3, 0.8, 0.95])
def test_in_half_precision_top_p_keeps_what_it_keeps_of_the_same_numbers_in_float32(
    p: float, dtype: torch.dtype
) -> None:
    """Over a vocabulary so large that a sum in half precision stands still long before it reaches p."""
    logits = torch.randn(3, 20_000, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(kept(top_p_filter(logits, p)), kept(top_p_filter(logits.float(), p)))


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=lambda dtype: str(dtype)[6:]
)
@pytest.mark.parametrize("settings", [{}, {"temperature": 0}, {"top_k": 2}])
def test_large_logits_of_many_rows_are_finite(settings: dict[str, Any], dtype: torch.dtype) -> None:
    """Each of them is, though their sum is not."""
    logits = torch.tensor([[0.6, 0.1, 0.3]], dtype=torch.float64) * torch.finfo(dtype).max
    rows = logits.to(dtype).expand(5, -1)
    assert next_token_probabilities(rows, SampleConfig(**settings)).tolist() == [[1, 0, 0]] * 5
    assert next_tokens(rows, SampleConfig(**settings), torch.full((5,), 0.5).double()).tolist() == [0] * 5


# The order of the filters: settings for which another order gives another result


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # top-k before top-p: of what top-k left, 0.5 is 0.625, which is enough for 0.6
        ({"top_k": 2, "top_p": 0.6}, [1, 0, 0, 0]),
        ({"top_p": 0.6}, [0.625, 0.375, 0, 0]),
        # temperature before top-p: squared and renormalised, 0.5 is 0.69
        ({"temperature": 0.5, "top_p": 0.6}, [1, 0, 0, 0]),
        # temperature before min-p: 0.1 / 0.5 = 0.2 becomes 0.04
        ({"temperature": 0.5, "min_p": 0.1}, [0.25 / 0.34, 0.09 / 0.34, 0, 0]),
        ({"min_p": 0.1}, [0.5, 0.3, 0.1, 0.1]),
        # top-p before min-p: the other way round 0.5 would be 0.625 of the mass, enough for 0.55
        ({"top_p": 0.55, "min_p": 0.5}, [0.625, 0.375, 0, 0]),
    ],
)
def test_the_order_of_the_filters_can_be_seen(settings: dict[str, Any], expected: list[float]) -> None:
    logits = torch.tensor([0.5, 0.3, 0.1, 0.1], dtype=torch.float64).log()
    probabilities = next_token_probabilities(logits, SampleConfig(**settings))
    assert probabilities.tolist() == pytest.approx(expected)


def test_the_penalty_comes_before_top_k() -> None:
    logits, seen = torch.tensor([2.0, 1.8, 0.0]), torch.tensor([True, False, False])
    config = SampleConfig(repetition_penalty=2, top_k=1)
    assert next_token_probabilities(logits, config, seen).tolist() == [0, 1, 0]
    assert next_token_probabilities(logits, config, ~seen).tolist() == [1, 0, 0]
    greedy = replace(config, temperature=0.0)
    assert next_token_probabilities(logits, greedy, seen).tolist() == [0, 1, 0]


# The distribution as a whole


@given(tables, configs)
def test_probabilities_sum_to_one_and_keep_the_order(
    table: tuple[int, int, bool, int], config: SampleConfig
) -> None:
    logits, seen = drawn_table(table)
    probabilities = next_token_probabilities(logits, config, seen)
    assert probabilities.shape == logits.shape
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(len(logits), dtype=torch.float64))
    assert (probabilities >= 0).all()
    scaled = apply_repetition_penalty(logits, seen, config.repetition_penalty)
    for row, scores in zip(probabilities, scaled, strict=True):
        best = scores.argmax()
        assert row[best] == row.max() > 0  # the likeliest survives every filter
        left = row > 0
        assert (row[left][scores[left].argsort(descending=True)].diff() <= 1e-15).all()


@given(tables, configs)
def test_each_row_is_filtered_by_itself(table: tuple[int, int, bool, int], config: SampleConfig) -> None:
    logits, seen = drawn_table(table)
    rows = torch.stack([next_token_probabilities(*row) for row in _rows(logits, config, seen)])
    together = next_token_probabilities(logits[:, None], config, seen[:, None])[:, 0]
    assert torch.equal(together > 0, rows > 0)
    torch.testing.assert_close(together, rows)


def _rows(logits: Tensor, config: SampleConfig, seen: Tensor) -> list[tuple[Tensor, SampleConfig, Tensor]]:
    return [(row, config, marks) for row, marks in zip(logits, seen, strict=True)]


def test_temperature_zero_is_the_limit_of_small_temperatures() -> None:
    logits = random_logits(2, ties=False)
    zero = next_token_probabilities(logits, SampleConfig(temperature=0, top_k=3, top_p=0.5))
    torch.testing.assert_close(zero, next_token_probabilities(logits, SampleConfig(temperature=1e-3)))


@pytest.mark.parametrize("ties", [False, True])
def test_filters_leave_the_logits_they_are_given_unchanged(ties: bool) -> None:
    logits, (_, seen) = random_logits(3, ties=ties), random_text(3)
    before = logits.clone()
    next_token_probabilities(logits, ALL, seen)
    next_tokens(logits, ALL, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), seen)
    for each in (lambda x: top_p_filter(x, 1.0), lambda x: min_p_filter(x, 0.0)):
        each(logits)
    assert torch.equal(logits, before)
