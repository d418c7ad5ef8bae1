"""Checks of lesson 08's exercises."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from labcourse.check import Answer, expect

_CLAIMS = {
    "B": "B: compare the steps of the two runs. What else was doubled along with the overlap?",
    "C": "C: the claim gives a reason. Which settings differ, and does any run test that reason?",
    "D": "D: a small difference with one seed is not the same as no difference. What could this run not "
    "have seen?",
    "E": "E: look at what the two losses were measured on.",
    "F": "F: per what do the two numbers count? Are those of one length?",
}


def epoch_steps(answer: Answer) -> str:
    steps = number(answer(163_841, 64, 32), "The number of steps")
    expect(
        steps != 2560,
        "2,560 is how many windows there are. How many of them does a step read?",
    )
    expect(
        steps < 2000,
        f"{steps:,.0f} steps for 163,841 tokens, 64 a window, 32 windows a step: each of the windows that "
        "a step reads holds many tokens.",
    )
    expect(steps == int(steps), f"{steps} is no whole number: can a step be done in part?")
    expect(
        steps != 79,
        "79 steps come out if a window uses up `context + 1` tokens. The last target of a window is the "
        "first input of the next one.",
    )
    expect(
        answer(23, 5, 4) != 2,
        "23 tokens make 4 full windows of 5, which are one step of 4, and not 2 steps. Either a window that "
        "is not full was counted (such a rest is dropped), or a step was added that has no window to read.",
    )
    expect(
        answer(23, 5, 1) != 3,
        "23 tokens make 4 windows of 5, and not 3. The first one starts at place 0: was it counted?",
    )
    expect(
        answer(64 * 29, 64, 7) != 5,
        "For 1,856 tokens in windows of 64 there is one window too many: the last token has no successor, "
        "so how many inputs have a target?",
    )
    expect(
        answer(1000, 7, 5) != 28,
        "142 windows, 5 a step, came out as 28 steps: the 2 windows that are left over are a (smaller) "
        "step too.",
    )
    broken = answer(1000, 7, 5)
    expect(
        broken == int(broken),
        f"142 windows, 5 a step, came out as {broken:g} steps: can a step be done in part?",
    )
    cases = {(163_841, 64, 32): 80, (163_841, 64, 16): 160, (1000, 7, 5): 29, (23, 5, 1): 4, (1856, 64, 7): 4}
    for case, right in cases.items():
        given = answer(*case)
        expect(given == right, f"For tokens, context, batch_size = {case} it gives {given}. Count by hand.")
    return "Half the batch at the same tokens means twice the steps: `batch_size_16` changed both."


def best_per_byte(answer: Answer) -> str:
    text = "to be or not to be"
    words_better = {"letters": (4.0, 18), "words": (32.0, 6)}
    letters_better = {"letters": (3.0, 18), "words": (64.0, 6)}
    given = answer(words_better, text)
    expect(
        isinstance(given, tuple | list) and len(given) == 2 and isinstance(given[0], str),
        "Return two things: the name of the better model, and its bits per byte.",
    )
    bits = number(given[1], "The number of bits")
    expect(
        given[0] == "words",
        "Perplexity 4 on 18 tokens was called better than perplexity 32 on 6. How probable does each of "
        "the two models find the whole text?",
    )
    expect(
        answer(letters_better, text)[0] == "letters",
        "Perplexity 64 on 6 tokens was called better than perplexity 3 on 18: fewer tokens alone are no "
        "merit.",
    )
    right = 6 * 5 / 18
    expect(
        not math.isclose(bits, right * math.log(2), rel_tol=1e-3),
        f"{bits:.3f} counts nats. How many nats are a bit?",
    )
    expect(
        not math.isclose(bits, 5.0, rel_tol=1e-3),
        f"{bits:.3f} is counted per token. Which length of the text does no tokenizer change?",
    )
    expect(
        not math.isclose(bits, right * len(text), rel_tol=1e-3),
        f"{bits:.1f} bits are what the whole text takes. How many are that per byte?",
    )
    accents = "Où est l'été? – Là-bas, très loin."
    models = {"pieces": (50.0, 11), "letters": (9.0, len(accents))}
    name, bits = answer(models, accents)
    by_characters = 11 * math.log2(50) / len(accents)
    expect(
        not math.isclose(bits, by_characters, rel_tol=1e-3),
        "Correct for plain English, too large for French: how many bytes does an é take in UTF-8?",
    )
    expect(
        name == "pieces" and math.isclose(bits, 11 * math.log2(50) / len(accents.encode()), rel_tol=5e-3),
        f"For {models} on {accents!r} it gives {name!r} and {bits:.3f}. Which power of 2 is the "
        "perplexity, and of how many tokens is that the average?",
    )
    return "Bits per byte times bytes is the length of the text, in bits, when the model compresses it."


def fair_claims(answer: Answer) -> str:
    given = answer()
    expect(
        isinstance(given, str | list | tuple | set | frozenset)
        and all(isinstance(each, str) for each in given),
        'Return the letters, for example "AB" or {"A", "B"}.',
    )
    letters = {each.upper() for each in given} - {" ", ","}
    expect(
        letters <= set("ABCDEFG"), f"The claims are A to G, and {sorted(letters - set('ABCDEFG'))} are none."
    )
    for letter, mistake in _CLAIMS.items():
        expect(letter not in letters, mistake)
    expect(letters, "Not one? Some claims say no more than what was measured.")
    expect(
        letters == {"A", "G"},
        "What you chose holds, and so does one that you left out. Doubt needs a reason too: is it one "
        "change, on the same text, at the same number of tokens, by many spreads?",
    )
    return "Both say what was measured, for which training, and no word on why."


def repair_permutation_test_stub(
    one: Sequence[float], other: Sequence[float], shuffles: int, rng: np.random.Generator
) -> float:
    cards = np.array([*one, *other])
    seen = np.mean(one) - np.mean(other)
    farther = 0
    for _ in range(shuffles):
        left = rng.permutation(cards[: len(one)])
        right = rng.permutation(cards[len(one) :])
        farther += left.mean() - right.mean() > seen
    return farther / shuffles


def _exact(one: Sequence[float], other: Sequence[float]) -> float:
    cards = [*one, *other]
    seen = abs(sum(one) / len(one) - sum(other) / len(other))
    distances = []
    for chosen in itertools.combinations(range(len(cards)), len(one)):
        left = [cards[i] for i in chosen]
        right = [card for i, card in enumerate(cards) if i not in chosen]
        distances.append(abs(sum(left) / len(left) - sum(right) / len(right)))
    return sum(distance >= seen - 1e-9 for distance in distances) / len(distances)


def repair_permutation_test(answer: Answer) -> str:
    def p(one: Sequence[float], other: Sequence[float], shuffles: int = 1500) -> float:
        value = number(answer(one, other, shuffles, np.random.default_rng(5)), "p")
        expect(0 <= value <= 1, f"p is a share, and {value:g} is not between 0 and 1.")
        return value

    mixed = ([3, 9, 4, 6], [5, 8, 7, 10])
    low, high = p(*mixed), p(*mixed[::-1])
    stuck = all(value < 0.002 or value > 0.998 for value in (low, high))
    expect(
        not stuck,
        f"For two groups that overlap widely, p is {low:.3f}. Print the difference of each shuffle: does a "
        "card ever change sides?",
    )
    apart = ([1, 2, 3, 4], [5, 6, 7, 8])
    expect(
        p(*apart) > 0.006,
        f"For 1 to 4 against 5 to 8, of 70 deals 2 are as far apart, and p is {p(*apart):.4f}. Does a "
        "shuffle that is just as far apart count? And is each card dealt, to one hand alone?",
    )
    expect(
        abs(low - high) < 0.08,
        f"p is {low:.2f}, and {high:.2f} when the two recipes change places. A difference that large would "
        "have been news in either direction.",
    )
    right = _exact(*mixed)
    expect(
        abs(low - right / 2) > 0.06,
        f"p is {low:.2f}, half of what dealing out all hands gives: one direction is not counted.",
    )
    far = (list(range(8)), list(range(20, 28)))
    expect(
        p(*far, shuffles=60) > 0,
        "60 shuffles, none as far apart, and p = 0: that says impossible. Is the deal that you saw not one "
        "of the deals?",
    )
    least = p(*far, shuffles=19)
    expect(
        0.04 < least < 0.06,
        f"Of 19 shuffles none is as far apart, and p is {least:.4g}. Two things are counted: the shuffles "
        "that are as far apart, and the deal that you saw. Do nothing else to their sum than divide it.",
    )
    expect(
        abs(least - 1 / 20) < 1e-9,
        f"19 shuffles, none as far apart, give p = {least:.3f}. With the deal that you saw, how many deals "
        "are that in all?",
    )
    uneven = ([2, 5], [1, 3, 4, 6, 7, 8, 9, 10])
    for one, other in (mixed, uneven, ([2, 12], [3, 5, 4, 6])):
        value, right = p(one, other), _exact(one, other)
        expect(
            abs(value - right) < 0.06,
            f"For {one} against {other}, dealing out all hands gives {right:.2f}, and your test says "
            f"{value:.2f}. Do both hands keep their sizes?",
        )
    return "Now it works for ten seeds a side, where nobody deals out all 184,756 hands."


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
