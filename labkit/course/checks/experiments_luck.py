"""Checks of lesson 08's exercises on luck: how often it wins, and how many seeds outweigh it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from labkit.course.check import Answer, expect


def number(value: Any, what: str) -> float:
    expect(
        isinstance(value, int | float | np.number) and not isinstance(value, bool),
        f"{what} is a {type(value).__name__}, not a number.",
    )
    expect(math.isfinite(value), f"{what} is {value}.")
    return float(value)


def _simulated(recipes: int, seeds: int) -> dict[str, float]:
    """The share, and what comes out with the usual mistakes."""
    rng = np.random.default_rng(8)
    baseline, others = rng.normal(size=(40_000, seeds)), rng.normal(size=(40_000, recipes))
    mean, spread = baseline.mean(axis=1), np.ptp(baseline, axis=1)
    best, each = others.min(axis=1), float((others < (mean - spread)[:, None]).mean())
    return {
        "right": float((best < mean - spread).mean()),
        "each": each,
        "independent": 1 - (1 - each) ** recipes,
        "average": float((others.mean(axis=1) < mean - spread).mean()),
        "below the lowest": float((best < baseline.min(axis=1) - spread).mean()),
        "worst": float((others.max(axis=1) < mean - spread).mean()),
        "one seed": float((best < baseline[:, 0] - spread).mean()),
        "deviation": float((best < mean - baseline.std(axis=1, ddof=1)).mean()),
        "deviation of all": float((best < mean - baseline.std(axis=1)).mean()),
        "no spread": float((best < mean).mean()),
        "lowest": float((best < baseline.min(axis=1)).mean()),
        "either side": float((abs(others - mean[:, None]).max(axis=1) > spread).mean()),
        "distance": float((abs(best - mean) > spread).mean()),
        "one for all": float((best < mean - np.ptp(baseline)).mean()),
        "own spread": float((best < mean - np.ptp(others, axis=1)).mean()),
    }


def false_discoveries(answer: Answer) -> str:
    cases = ((15, 3), (1, 3), (4, 5))
    shares = [number(answer(*case, 4000, np.random.default_rng(3)), "The share") for case in cases]
    expect(
        all(0 <= share <= 1 for share in shares),
        f"A share lies between 0 and 1, and {shares[0]:g} does not: counted, but not divided?",
    )
    known = [_simulated(*case) for case in cases]
    deviation = "That is too often: the spread is the largest minus the smallest, not a standard deviation."
    side = "A loss far above the baseline's is no discovery: only a lower one is announced."
    said = {
        "one for all": "Was the spread taken over all sweeps at once? Each sweep has its own.",
        "either side": side,
        "distance": side,
        "each": "That is the share of all single recipes. Of each sweep only its best one is announced.",
        "independent": "The recipes of a sweep share one baseline: if that came out high by luck, all profit "
        "at once. So their chances do not multiply.",
        "average": "So often the mean of the recipes is so low. Of each sweep the best one is announced.",
        "below the lowest": "The spread is taken off the baseline's mean, not off its best seed.",
        "worst": "The winner is the one with the lowest loss: was the highest taken?",
        "one seed": "The baseline has three seeds: it is their mean that the winner has to beat.",
        "deviation": deviation,
        "deviation of all": deviation,
        "no spread": "The winner is nearly always below the mean. Is it below by more than the spread?",
        "lowest": "Below the best of the baseline's seeds is not yet below their mean by the whole spread.",
        "own spread": "Whose spread? What chance does is measured on the runs of the baseline.",
    }
    for mistake, message in said.items():
        alike = all(abs(share - each[mistake]) < 0.025 for share, each in zip(shares, known, strict=True))
        expect(not alike, f"{shares[0]:.0%} of the sweeps. {message}")
    for (recipes, seeds), share, each in zip(cases, shares, known, strict=True):
        expect(
            abs(share - each["right"]) < 0.035,
            f"With {recipes} other recipes and {seeds} seeds of the baseline it gives {share:.0%}, and a "
            "simulation of our own does not. Are both numbers used where they belong?",
        )
    return "Every second sweep like this announces a winner, although there is none."


def seeds_needed(answer: Answer) -> str:
    losses, effect = [2.50, 2.53, 2.59, 2.55], 0.031
    needed = number(answer(losses, effect), "The number of seeds")
    expect(needed > 0, f"{needed:g} seeds? A lower loss is an effect as well: its sign does not matter.")
    sigma = float(np.std(losses, ddof=1))
    ratio = 3 * sigma / effect
    expect(
        not math.isclose(needed, 2 * ratio**2, rel_tol=1e-6),
        f"{needed:.2f} is no number of runs: round so that it is surely enough.",
    )
    expect(needed == int(needed), f"{needed} is no whole number.")
    deviation_over_n, spread = float(np.std(losses)), float(np.ptp(losses))
    wrong = {
        2 * ratio**2 - 1: "With so few the effect is a little too small: round to the other side.",
        ratio**2: "Half of what it takes: both means are off by luck, not one alone.",
        2 * (3 * deviation_over_n / effect) ** 2: "Too few: the deviation was taken over n, which is too "
        "small for few runs. The lesson's has `ddof=1`.",
        2 * (3 * spread / effect) ** 2: "Too many: the largest minus the smallest is not the standard "
        "deviation.",
        math.sqrt(2) * ratio: "Too few: the standard deviation of a mean falls with the root of n.",
        2 * ratio: "Too few: n stands under a root. Square both sides to get it out.",
        6 * (sigma / effect) ** 2: "Too few: the 3 stands beside σ, so it is squared along with it.",
        2 * math.ceil(2 * ratio**2): "That is for both sides together. How many does each side need?",
        2
        * ratio**2
        / len(losses): "σ is how far one run is off. It was estimated from 4 runs, and that makes "
        "it no smaller.",
        math.ceil(2 * ratio**2) - len(losses): "That is how many more than the 4 runs there are. How many in "
        "all?",
        2 * (sigma / effect) ** 2: "With so few the effect is one standard deviation, not three.",
    }
    if needed != math.ceil(2 * ratio**2):
        for seeds, mistake in wrong.items():
            expect(needed != math.ceil(seeds), f"{needed:.0f} seeds. {mistake}")
    for runs, size in (
        ([2.50, 2.53, 2.59, 2.55], 0.031),
        ([1.02, 1.00, 1.05], -0.02),
        ([6.5, 6.6, 6.56], 0.4),
    ):
        right = math.ceil(2 * (3 * float(np.std(runs, ddof=1)) / size) ** 2)
        given = answer(runs, size)
        expect(
            given == right,
            f"For {runs} and an effect of {size:g} it gives {given}. Put it into sd(Δ): is the effect "
            "three times as large, and with one seed fewer no longer?",
        )
    return "Half the effect takes four times the seeds. Now ask it about the single head of your own sweep."
