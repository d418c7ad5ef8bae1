"""Checks of lesson 08's exercises."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from labkit.course.check import Answer, expect
from labkit.course.checks.experiments_luck import false_discoveries as false_discoveries
from labkit.course.checks.experiments_luck import number
from labkit.course.checks.experiments_luck import seeds_needed as seeds_needed

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
