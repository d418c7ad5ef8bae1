"""The law that is fitted is the one that made the data, and the best there is by another optimiser."""

from __future__ import annotations

import math
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import huber, logsumexp

from labkit.analysis import PUBLISHED, ScalingLaw, bootstrap_scaling_law, fit_scaling_law, intervals

LAW = ScalingLaw(E=1.2, A=30.0, alpha=0.33, B=300.0, beta=0.42)
PARAMETERS = np.repeat([1e4, 2e4, 4.1e4, 8e4, 1.5e5, 3.3e5], 5)
TOKENS = np.tile([1e5, 2e5, 4.2e5, 8e5, 1.6e6], 6)
NAMES = ["E", "A", "alpha", "B", "beta"]


def noisy(noise: float, seed: int = 0) -> np.ndarray:
    factors = np.exp(noise * np.random.default_rng(seed).standard_normal(len(TOKENS)))
    return LAW.predict(PARAMETERS, TOKENS) * factors


def test_exact_losses_give_back_the_law() -> None:
    law = fit_scaling_law(PARAMETERS, TOKENS, noisy(0.0))
    assert astuple(law) == pytest.approx(astuple(LAW), rel=1e-6)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_laws_are_found_from_their_own_losses(name: str) -> None:
    parameters, tokens = np.repeat([7e7, 3e8, 1e9, 1e10], 4), np.tile([1e9, 1e10, 1e11, 4e11], 4)
    losses = PUBLISHED[name].predict(parameters, tokens)
    assert astuple(fit_scaling_law(parameters, tokens, losses)) == pytest.approx(
        astuple(PUBLISHED[name]), rel=1e-5
    )


def objective(position: np.ndarray, losses: np.ndarray) -> float:
    """Equation 3 of Hoffmann et al. (2022), as it stands there."""
    a, b, e, alpha, beta = position
    terms = [a - alpha * np.log(PARAMETERS), b - beta * np.log(TOKENS), np.full(len(TOKENS), e)]
    return float(huber(1e-3, logsumexp(terms, axis=0) - np.log(losses)).sum())


@pytest.mark.parametrize("noise", [0.003, 0.01])
def test_no_other_optimiser_finds_a_better_law(noise: float) -> None:
    losses = noisy(noise)
    law = fit_scaling_law(PARAMETERS, TOKENS, losses)
    mine = np.array([math.log(law.A), math.log(law.B), math.log(law.E), law.alpha, law.beta])
    value = objective(mine, losses)
    starts = [mine, [5.0, 5.0, 0.0, 0.5, 0.5], [2.0, 8.0, 0.5, 0.2, 0.7], [8.0, 3.0, -1.0, 0.8, 0.2]]
    settings: dict[str, Any] = {"maxiter": 20_000, "maxfev": 20_000, "xatol": 1e-9, "fatol": 1e-15}
    others = [minimize(objective, start, losses, method="Nelder-Mead", options=settings) for start in starts]
    assert value <= min(each.fun for each in others) * (1 + 1e-6)


def test_an_odd_run_pulls_little() -> None:
    losses = noisy(0.0)
    losses[17] *= 1.3
    assert astuple(fit_scaling_law(PARAMETERS, TOKENS, losses)) == pytest.approx(astuple(LAW), rel=0.02)


def test_intervals_hold_the_law_that_made_the_data() -> None:
    laws = bootstrap_scaling_law(PARAMETERS, TOKENS, noisy(0.003, seed=1), resamples=200)
    between = intervals(laws, level=0.98)
    for name in (*NAMES, "share"):
        low, high = between[name]
        assert low < getattr(LAW, name) < high
        assert high - low < 0.8 * getattr(LAW, name)


def test_more_noise_widens_the_intervals() -> None:
    widths = []
    for noise in (0.001, 0.004):
        laws = bootstrap_scaling_law(PARAMETERS, TOKENS, noisy(noise), resamples=60)
        low, high = intervals(laws)["alpha"]
        widths.append(high - low)
    assert widths[1] > 2 * widths[0]


def test_the_same_seed_gives_the_same_laws() -> None:
    draws = [
        bootstrap_scaling_law(PARAMETERS, TOKENS, noisy(0.01), resamples=7, seed=seed) for seed in (0, 0, 1)
    ]
    assert draws[0] == draws[1] != draws[2]


def test_intervals_are_quantiles() -> None:
    laws = [ScalingLaw(E=each, A=1.0, alpha=0.3, B=1.0, beta=0.1 * each) for each in np.arange(1.0, 12.0)]
    assert intervals(laws, level=0.8)["E"] == pytest.approx((2.0, 10.0))
    assert intervals(laws, level=0.8)["share"] == pytest.approx((0.2 / 0.5, 1.0 / 1.3))


def test_a_law_predicts_whole_curves() -> None:
    found = LAW.predict(np.array([[1e4], [2e4]]), [1e5, 1e6, 1e7])
    assert found.shape == (2, 3)
    assert found[1, 2] == pytest.approx(1.2 + 30 / 2e4**0.33 + 300 / 1e7**0.42)


@pytest.mark.parametrize("flops", [3e13, 7e15])
def test_the_best_size_is_the_lowest_point_of_its_budget(flops: float) -> None:
    best, tokens = LAW.optimal(flops)
    assert 6 * best * tokens == pytest.approx(flops)
    sizes = np.geomspace(best / 50, best * 50, 20_001)
    losses = LAW.predict(sizes, flops / (6 * sizes))
    assert sizes[losses.argmin()] == pytest.approx(best, rel=1e-3)


def test_the_best_size_grows_with_the_share() -> None:
    (small, large), _ = LAW.optimal([1e14, 1e16])
    assert large / small == pytest.approx(100**LAW.share)
    assert LAW.share == pytest.approx(0.42 / 0.75)


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("losses", math.nan, "losses holds nan"),
        ("losses", math.inf, "losses holds inf"),
        ("tokens", 0.0, "tokens holds 0.0; all must be finite and above 0"),
        ("parameters", -2.0, "parameters holds -2.0"),
    ],
)
def test_values_that_have_no_logarithm_are_refused(where: str, value: float, message: str) -> None:
    data = {"parameters": PARAMETERS.copy(), "tokens": TOKENS.copy(), "losses": noisy(0.0)}
    data[where][3] = value
    with pytest.raises(ValueError, match=message):
        fit_scaling_law(**data)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (slice(0, 5), "5 runs of 1 sizes and 5 numbers"),
        (slice(0, 10), "10 runs of 2 sizes and 5 numbers of tokens do not"),
        (TOKENS < 3e5, "12 runs of 6 sizes and 2 numbers"),
        ([0, 6, 12, 18, 24], "5 runs of 5 sizes and 5 numbers"),
    ],
)
def test_too_few_runs_are_refused(chosen: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_scaling_law(PARAMETERS[chosen], TOKENS[chosen], noisy(0.0)[chosen])


def test_lists_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"parameters has shape \(29,\); give one number per run"):
        fit_scaling_law(PARAMETERS[1:], TOKENS, noisy(0.0))
