"""Solutions of lesson 08's exercises."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np


def epoch_steps(tokens: int, context: int, batch_size: int) -> int:
    """The last token is nobody's input, for nothing follows it: `tokens - 1` inputs have a target. Full
    windows alone are kept (round down); each step reads `batch_size` of them, and what is left over makes
    one more step (round up).

    With half the `batch_size` it is twice as many steps. Two runs that read the same tokens are fair in
    what they read, and differ in how often they could correct themselves.
    """
    windows = (tokens - 1) // context
    return math.ceil(windows / batch_size)


def best_per_byte(models: Mapping[str, tuple[float, int]], text: str) -> tuple[str, float]:
    """A perplexity of $P$ means $\\log_2 P$ bits for an average token. All tokens together are what the
    model needs for the text, and that is to be small.

    Divided by the bytes it becomes comparable between texts. Bytes, not characters: an `é` takes two in
    UTF-8, and tokenizers such as GPT-2's work on bytes.
    """
    length = len(text.encode())
    bits = {name: tokens * math.log2(perplexity) / length for name, (perplexity, tokens) in models.items()}
    best = min(bits, key=lambda name: bits[name])
    return best, bits[best]


def fair_claims() -> set[str]:
    """**A** and **G** say what was measured: one change, the same text, the same tokens, by many spreads.

    B: twice the overlap came with twice the steps; against the same windows twice, nothing is shown. C:
    the scale of the embeddings was changed as well, and no run tests the reason. D: no effect *shown*, in
    one short run. E: *Henry V* and all held-out plays are different texts. F: tokens of different length;
    in bits per byte the two are close.
    """
    return {"A", "G"}


def false_discoveries(recipes: int, seeds: int, sweeps: int, rng: np.random.Generator) -> float:
    """All runs are draws from one distribution, since no recipe does anything. Which one does not matter:
    mean and scale cancel, so standard normal numbers will do.

    A row is a sweep. It announces a discovery if the *lowest* of its other runs lies below the baseline's
    mean by more than the baseline's spread.
    """
    baseline = rng.normal(size=(sweeps, seeds))
    others = rng.normal(size=(sweeps, recipes))
    limit = baseline.mean(axis=1) - np.ptp(baseline, axis=1)
    return float((others.min(axis=1) < limit).mean())


def repair_permutation_test(
    one: Sequence[float], other: Sequence[float], shuffles: int, rng: np.random.Generator
) -> float:
    """Three things were wrong.

    Each group was shuffled by itself, so no card ever changed sides and each difference was the one seen:
    shuffle all of them, then cut. Only one direction counted: take the distance. And the deal that was
    seen is one of the possible ones, as far apart as itself: count it, or a test with few shuffles
    reports that the impossible has happened (Phipson & Smyth, 2010). For the same reason *as far* counts
    like *farther*; the tiny number allows for rounding.
    """
    cards = np.array([*one, *other])
    seen = abs(np.mean(one) - np.mean(other))
    farther = 1
    for _ in range(shuffles):
        shuffled = rng.permutation(cards)
        left, right = shuffled[: len(one)], shuffled[len(one) :]
        farther += abs(left.mean() - right.mean()) >= seen - 1e-9
    return float(farther / (1 + shuffles))


def seeds_needed(losses: Sequence[float], effect: float) -> int:
    """With $n$ seeds on either side, $\\mathrm{sd}(\\Delta) = \\sigma\\sqrt{2 / n}$. It shall be at most a
    third of the effect: $n \\ge 2\\,(3\\sigma / \\Delta)^2$, rounded up.

    $\\sigma$ comes from the repeated runs, with `ddof=1`. From three of them it is itself only roughly
    known, so take the answer as an order of magnitude.
    """
    sigma = float(np.std(losses, ddof=1))
    return math.ceil(2 * (3 * sigma / effect) ** 2)
