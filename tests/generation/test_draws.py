"""Tokens are drawn as the distribution says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_settings import DTYPES, VOCAB, configs, drawn_table, random_logits, random_text, tables
from scipy import stats
from torch import Tensor

from labkit import SampleConfig
from labkit.generation import draw, next_token_probabilities, next_tokens

uniform_numbers = st.sampled_from([0.0, 2**-60, 0.5, 1 - 2**-53]) | st.floats(0, 1, exclude_max=True)


@given(tables, configs, st.data())
def test_next_tokens_draws_from_next_token_probabilities(
    table: tuple[int, int, bool, int], config: SampleConfig, data: st.DataObject
) -> None:
    """Also with top-k, where only a shortlist is worked on."""
    logits, seen = drawn_table(table)
    numbers = data.draw(st.lists(uniform_numbers, min_size=len(logits), max_size=len(logits)))
    uniforms = torch.tensor(numbers, dtype=torch.float64)
    probabilities = next_token_probabilities(logits, config, seen)
    tokens = next_tokens(logits, config, uniforms, seen)
    assert tokens.shape == (len(logits),)
    assert (probabilities.gather(-1, tokens[:, None]) > 0).all()
    assert torch.equal(tokens, draw(probabilities, uniforms))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    "settings", [{"top_k": 3}, {"top_k": 40}, {"top_k": 40, "top_p": 0.9}, {"top_k": 40, "min_p": 0.05}]
)
def test_in_float32_the_shortlist_draws_the_same_tokens_too(settings: dict[str, Any], ties: bool) -> None:
    """The two softmaxes round differently, which 4,000 draws do not notice."""
    generator = torch.Generator().manual_seed(6)
    logits = 3 * torch.randn(4000, 301, generator=generator)
    logits = logits.round() if ties else logits
    uniforms = torch.rand(4000, dtype=torch.float64, generator=generator)
    config = SampleConfig(**settings)
    expected = draw(next_token_probabilities(logits, config), uniforms)
    assert torch.equal(next_tokens(logits, config, uniforms), expected)


def test_many_draws_from_one_distribution_are_those_of_as_many_rows() -> None:
    generator = torch.Generator().manual_seed(2)
    probabilities = torch.randn(37, generator=generator).softmax(-1)
    uniforms = torch.rand(500, dtype=torch.float64, generator=generator)
    assert torch.equal(draw(probabilities, uniforms), draw(probabilities.expand(500, -1), uniforms))


masses = st.lists(
    st.sampled_from([0.0, 0.0, 5e-324, 1e-300, 1e-45, 1e-17, 1e-8, 0.1, 1.0]) | st.floats(0, 1),
    min_size=1,
    max_size=9,
).filter(lambda values: max(values) > 1e-3)


@given(masses, uniform_numbers, st.sampled_from(DTYPES))
def test_a_token_of_probability_zero_is_never_drawn(
    values: list[float], uniform: float, dtype: torch.dtype
) -> None:
    probabilities = torch.tensor([values], dtype=torch.float64)
    probabilities = (probabilities / probabilities.sum()).to(dtype)
    token = int(draw(probabilities, torch.tensor([uniform], dtype=torch.float64)))
    assert probabilities[0, token] > 0
    if uniform == 0:
        assert token == int((probabilities[0] > 0).nonzero()[0])


def test_the_number_decides_by_the_cumulative_distribution() -> None:
    probabilities = torch.tensor([0.25, 0.0, 0.5, 0.25]).expand(6, -1)
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-53], dtype=torch.float64)
    assert draw(probabilities, uniforms).tolist() == [0, 0, 2, 2, 3, 3]


DRAWS = 120_000
SETTINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "penalty": {"repetition_penalty": 1.7},
    "temperature": {"temperature": 1.6},
    "top-k": {"top_k": 5},
    "top-k of all": {"top_k": VOCAB},
    "top-p": {"top_p": 0.9},
    "min-p": {"min_p": 0.05},
    "all": {"repetition_penalty": 1.4, "temperature": 1.7, "top_k": 12, "top_p": 0.95, "min_p": 0.02},
}


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_draws_follow_the_distribution(name: str, ties: bool) -> None:
    """Chi-square of 120,000 draws against the distribution computed step by step in float64."""
    logits = random_logits(11, ties=ties, rows=1)[0]
    _, seen = random_text(11, rows=1)
    config = SampleConfig(**SETTINGS[name])
    expected = plain_distribution(logits, config, seen[0])
    uniforms = torch.rand(DRAWS, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    tokens = next_tokens(logits.expand(DRAWS, -1), config, uniforms, seen.expand(DRAWS, -1))
    counts = tokens.bincount(minlength=VOCAB)
    assert counts[expected == 0].sum() == 0
    assert chi_square(counts, expected * DRAWS) > 0.001
    wrong = expected.clone()  # and the test would notice a hundredth of the mass in the wrong place
    best, other = expected.argsort(descending=True)[:2].tolist()
    wrong[best], wrong[other] = wrong[best] - 0.01, wrong[other] + 0.01
    assert chi_square(counts, wrong * DRAWS) < 1e-6


def plain_distribution(logits: Tensor, config: SampleConfig, seen: Tensor) -> Tensor:
    """The distribution in loops over tokens, from the definitions."""
    scores = logits.tolist()
    for token in seen.nonzero().flatten().tolist():
        penalty = config.repetition_penalty
        scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
    weights = (torch.tensor(scores, dtype=torch.float64) / config.temperature).exp()
    if config.top_k is not None:
        weights[weights < sorted(weights.tolist())[-config.top_k]] = 0
    if config.top_p is not None:
        covered, total = 0.0, weights.sum().item()
        for token in sorted(range(len(scores)), key=lambda each: (-weights[each].item(), each)):
            covered, weights[token] = (
                covered + weights[token].item() / total,
                weights[token] if covered < config.top_p else 0.0,
            )
    if config.min_p is not None:
        weights[weights < config.min_p * weights.max()] = 0
    return weights / weights.sum()


def chi_square(counts: Tensor, expected: Tensor) -> float:
    """p-value; tokens expected less than five times are counted together."""
    rare = expected < 5
    seen = torch.cat([counts[~rare].double(), counts[rare].sum().double()[None]])
    hoped = torch.cat([expected[~rare], expected[rare].sum()[None]])
    some = hoped > 0
    return float(stats.chisquare(seen[some].numpy(), hoped[some].numpy()).pvalue)


def test_greedy_takes_the_first_of_the_likeliest() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0], [5.0, 2.0, 5.0]])
    uniforms = torch.tensor([0.99, 0.99], dtype=torch.float64)
    assert next_tokens(logits, SampleConfig(temperature=0), uniforms).tolist() == [1, 0]
