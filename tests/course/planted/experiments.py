"""Wrong answers to lesson 08's exercises."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from planted import planted

Models = Mapping[str, tuple[float, int]]
Losses = Sequence[float]


@planted("epoch_steps", "holds many tokens")
def divides_by_windows_alone(tokens: int, context: int, batch_size: int) -> int:
    return math.ceil(tokens / batch_size)


@planted("epoch_steps", "How many of them does a step read?")
def counts_windows(tokens: int, context: int, batch_size: int) -> int:
    return (tokens - 1) // context


@planted("epoch_steps", "can a step be done in part")
def leaves_a_fraction(tokens: int, context: int, batch_size: int) -> float:
    return tokens / context / batch_size


@planted("epoch_steps", "the last token has no successor")
def forgets_that_the_last_token_has_no_target(tokens: int, context: int, batch_size: int) -> int:
    return math.ceil(tokens // context / batch_size)


@planted("epoch_steps", "such a rest is dropped")
def keeps_the_ragged_window(tokens: int, context: int, batch_size: int) -> int:
    return math.ceil(math.ceil((tokens - 1) / context) / batch_size)


@planted("epoch_steps", "a step was added that has no window")
def adds_a_step_always(tokens: int, context: int, batch_size: int) -> int:
    return (tokens - 1) // context // batch_size + 1


@planted("epoch_steps", "first input of the next one")
def uses_up_the_last_target(tokens: int, context: int, batch_size: int) -> int:
    return math.ceil(tokens // (context + 1) / batch_size)


@planted("epoch_steps", "was it counted?")
def forgets_the_first_window(tokens: int, context: int, batch_size: int) -> int:
    return math.ceil((tokens - context) // context / batch_size)


@planted("epoch_steps", "28.4 steps")
def leaves_a_part_of_a_step(tokens: int, context: int, batch_size: int) -> float:
    return (tokens - 1) // context / batch_size


@planted("epoch_steps", "left over are a (smaller) step too")
def drops_the_last_batch(tokens: int, context: int, batch_size: int) -> int:
    return (tokens - 1) // context // batch_size


def _bits(models: Models, text: str) -> dict[str, float]:
    return {name: n * math.log2(each) / len(text.encode()) for name, (each, n) in models.items()}


@planted("best_per_byte", "How probable does each of the two models find the whole text?")
def takes_the_lowest_perplexity(models: Models, text: str) -> tuple[str, float]:
    name = min(models, key=lambda name: models[name][0])
    return name, _bits(models, text)[name]


@planted("best_per_byte", "fewer tokens alone are no merit")
def takes_the_fewest_tokens(models: Models, text: str) -> tuple[str, float]:
    name = min(models, key=lambda name: models[name][1])
    return name, _bits(models, text)[name]


@planted("best_per_byte", "counts nats")
def counts_nats(models: Models, text: str) -> tuple[str, float]:
    bits = _bits(models, text)
    name = min(bits, key=lambda name: bits[name])
    return name, bits[name] * math.log(2)


@planted("best_per_byte", "counted per token")
def bits_per_token(models: Models, text: str) -> tuple[str, float]:
    bits = _bits(models, text)
    name = min(bits, key=lambda name: bits[name])
    return name, math.log2(models[name][0])


@planted("best_per_byte", "what the whole text takes")
def bits_of_the_whole_text(models: Models, text: str) -> tuple[str, float]:
    bits = _bits(models, text)
    name = min(bits, key=lambda name: bits[name])
    return name, bits[name] * len(text.encode())


@planted("best_per_byte", "how many bytes does an é take")
def counts_characters(models: Models, text: str) -> tuple[str, float]:
    bits = {name: n * math.log2(each) / len(text) for name, (each, n) in models.items()}
    name = min(bits, key=lambda name: bits[name])
    return name, bits[name]


@planted("best_per_byte", "Return two things")
def returns_the_name_alone(models: Models, text: str) -> str:
    bits = _bits(models, text)
    return min(bits, key=lambda name: bits[name])


@planted("fair_claims", "doubled along with the overlap")
def takes_steps_for_overlap() -> str:
    return "ABG"


@planted("fair_claims", "does any run test that reason")
def believes_the_reason() -> list[str]:
    return ["A", "C", "G"]


@planted("fair_claims", "not the same as no difference")
def takes_not_shown_for_not_there() -> set[str]:
    return {"A", "D", "G"}


@planted("fair_claims", "what the two losses were measured on")
def compares_across_texts() -> str:
    return "A, E, G"


@planted("fair_claims", "Are those of one length?")
def compares_perplexities_of_two_tokenizers() -> str:
    return "AFG"


@planted("fair_claims", "no more than what was measured")
def doubts_everything() -> set[str]:
    return set()


@planted("fair_claims", "so does one that you left out")
def wants_three_seeds_always() -> str:
    return "A"


@planted("fair_claims", "are none")
def answers_with_names() -> list[str]:
    return ["context_16", "no_positions"]


def _runs(recipes: int, seeds: int, sweeps: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return rng.normal(size=(sweeps, seeds)), rng.normal(size=(sweeps, recipes))


@planted("false_discoveries", "three seeds: it is their mean")
def compares_with_one_seed(recipes: int, seeds: int, sweeps: int, rng: np.random.Generator) -> float:
    baseline, others = _runs(recipes, seeds, sweeps, rng)
    return float((others.min(axis=1) < baseline[:, 0] - np.ptp(baseline, axis=1)).mean())


@planted("false_discoveries", "was the highest taken")
def takes_the_worst(recipes: int, seeds: int, sweeps: int, rng: np.random.Generator) -> float:
    baseline, others = _runs(recipes, seeds, sweeps, rng)
    return float((others.max(axis=1) < baseline.mean(axis=1) - np.ptp(baseline, axis=1)).mean())


@planted("false_discoveries", "only its best one is announced")
def forgets_that_the_best_is_chosen(recipes: int, seeds: int, sweeps: int, rng: np.random.Generator) -> float:
    baseline, others = _runs(recipes, seeds, sweeps, rng)
    limit = baseline.mean(axis=1) - np.ptp(baseline, axis=1)
    return float((others < limit[:, None]).mean())


@planted("false_discoveries", "not a standard deviation")
def takes_the_deviation_for_the_spread(
    recipes: int, seeds: int, sweeps: int, rng: np.random.Generator
) -> float:
    baseline, others = _runs(recipes, seeds, sweeps, rng)
    return float((others.min(axis=1) < baseline.mean(axis=1) - baseline.std(axis=1, ddof=1)).mean())


@planted("false_discoveries", "Is it below by more than the spread?")
def forgets_the_spread(recipes: int, seeds: int, sweeps: int, rng: np.random.Generator) -> float:
    baseline, others = _runs(recipes, seeds, sweeps, rng)
    return float((others.min(axis=1) < baseline.mean(axis=1)).mean())


@planted("false_discoveries", "Whose spread?")
def takes_the_spread_of_the_others(recipes: int, seeds: int, sweeps: int, rng: np.random.Generator) -> float:
    baseline, others = _runs(recipes, seeds, sweeps, rng)
    return float((others.min(axis=1) < baseline.mean(axis=1) - np.ptp(others, axis=1)).mean())


@planted("false_discoveries", "only a lower one is announced")
def announces_what_is_worse(recipes: int, seeds: int, sweeps: int, rng: np.random.Generator) -> float:
    baseline, others = _runs(recipes, seeds, sweeps, rng)
    farthest = abs(others - baseline.mean(axis=1, keepdims=True)).max(axis=1)
    return float((farthest > np.ptp(baseline, axis=1)).mean())


@planted("false_discoveries", "only a lower one is announced")
def takes_the_distance_of_the_best(recipes: int, seeds: int, sweeps: int, rng: np.random.Generator) -> float:
    baseline, others = _runs(recipes, seeds, sweeps, rng)
    return float((abs(others.min(axis=1) - baseline.mean(axis=1)) > np.ptp(baseline, axis=1)).mean())


@planted("false_discoveries", "over all sweeps at once")
def takes_one_spread_for_all_sweeps(recipes: int, seeds: int, sweeps: int, rng: np.random.Generator) -> float:
    baseline, others = _runs(recipes, seeds, sweeps, rng)
    return float((others.min(axis=1) < baseline.mean(axis=1) - np.ptp(baseline)).mean())


@planted("false_discoveries", "Are both numbers used")
def always_takes_fifteen(recipes: int, seeds: int, sweeps: int, rng: np.random.Generator) -> float:
    baseline, others = _runs(15, 3, sweeps, rng)
    return float((others.min(axis=1) < baseline.mean(axis=1) - np.ptp(baseline, axis=1)).mean())


@planted("false_discoveries", "share one baseline")
def multiplies_the_chances(recipes: int, seeds: int, sweeps: int, rng: np.random.Generator) -> float:
    baseline, others = _runs(1, seeds, sweeps, rng)
    single = (others[:, 0] < baseline.mean(axis=1) - np.ptp(baseline, axis=1)).mean()
    return float(1 - (1 - single) ** recipes)


@planted("false_discoveries", "the mean of the recipes")
def takes_the_mean_of_the_recipes(recipes: int, seeds: int, sweeps: int, rng: np.random.Generator) -> float:
    baseline, others = _runs(recipes, seeds, sweeps, rng)
    return float((others.mean(axis=1) < baseline.mean(axis=1) - np.ptp(baseline, axis=1)).mean())


@planted("false_discoveries", "not off its best seed")
def goes_below_the_best_seed(recipes: int, seeds: int, sweeps: int, rng: np.random.Generator) -> float:
    baseline, others = _runs(recipes, seeds, sweeps, rng)
    return float((others.min(axis=1) < baseline.min(axis=1) - np.ptp(baseline, axis=1)).mean())


@planted("false_discoveries", "not divided")
def counts_without_dividing(recipes: int, seeds: int, sweeps: int, rng: np.random.Generator) -> int:
    baseline, others = _runs(recipes, seeds, sweeps, rng)
    return int((others.min(axis=1) < baseline.mean(axis=1) - np.ptp(baseline, axis=1)).sum())


def _distances(one: Losses, other: Losses, shuffles: int, rng: np.random.Generator) -> np.ndarray:
    cards = np.array([*one, *other])
    dealt = [rng.permutation(cards) for _ in range(shuffles)]
    return np.array([each[: len(one)].mean() - each[len(one) :].mean() for each in dealt])


@planted("repair_permutation_test", "does a card ever change sides")
def shuffles_within_groups(one: Losses, other: Losses, shuffles: int, rng: np.random.Generator) -> float:
    seen, farther = abs(np.mean(one) - np.mean(other)), 1
    for _ in range(shuffles):
        left, right = rng.permutation(one), rng.permutation(other)
        farther += abs(left.mean() - right.mean()) >= seen - 1e-9
    return float(farther / (1 + shuffles))


@planted("repair_permutation_test", "in either direction")
def counts_one_direction(one: Losses, other: Losses, shuffles: int, rng: np.random.Generator) -> float:
    seen = np.mean(one) - np.mean(other)
    return float((1 + (_distances(one, other, shuffles, rng) >= seen - 1e-9).sum()) / (1 + shuffles))


@planted("repair_permutation_test", "one direction is not counted")
def distance_seen_but_not_dealt(one: Losses, other: Losses, shuffles: int, rng: np.random.Generator) -> float:
    seen = abs(np.mean(one) - np.mean(other))
    return float((1 + (_distances(one, other, shuffles, rng) >= seen - 1e-9).sum()) / (1 + shuffles))


@planted("repair_permutation_test", "just as far apart count")
def leaves_out_ties(one: Losses, other: Losses, shuffles: int, rng: np.random.Generator) -> float:
    seen = abs(np.mean(one) - np.mean(other))
    return float((1 + (abs(_distances(one, other, shuffles, rng)) > seen + 1e-9).sum()) / (1 + shuffles))


@planted("repair_permutation_test", "that says impossible")
def forgets_the_deal_that_was_seen(
    one: Losses, other: Losses, shuffles: int, rng: np.random.Generator
) -> float:
    seen = abs(np.mean(one) - np.mean(other))
    return float((abs(_distances(one, other, shuffles, rng)) >= seen - 1e-9).mean())


@planted("repair_permutation_test", "how many deals are that in all")
def counts_the_seen_deal_above_the_line_only(
    one: Losses, other: Losses, shuffles: int, rng: np.random.Generator
) -> float:
    seen = abs(np.mean(one) - np.mean(other))
    farther = 1 + (abs(_distances(one, other, shuffles, rng)) >= seen - 1e-9).sum()
    return min(1.0, float(farther / shuffles))


@planted("repair_permutation_test", "Do nothing else to their sum")
def doubles_one_direction(one: Losses, other: Losses, shuffles: int, rng: np.random.Generator) -> float:
    seen = abs(np.mean(one) - np.mean(other))
    farther = 1 + (_distances(one, other, shuffles, rng) >= seen - 1e-9).sum()
    return min(1.0, float(2 * farther / (1 + shuffles)))


@planted("repair_permutation_test", "to one hand alone")
def deals_each_hand_from_all_cards(
    one: Losses, other: Losses, shuffles: int, rng: np.random.Generator
) -> float:
    cards, seen, farther = np.array([*one, *other]), abs(np.mean(one) - np.mean(other)), 1
    for _ in range(shuffles):
        left, right = rng.permutation(cards)[: len(one)], rng.permutation(cards)[len(one) :]
        farther += abs(left.mean() - right.mean()) >= seen - 1e-9
    return float(farther / (1 + shuffles))


@planted("repair_permutation_test", "Do both hands keep their sizes?")
def cuts_in_the_middle(one: Losses, other: Losses, shuffles: int, rng: np.random.Generator) -> float:
    cards, seen, farther = np.array([*one, *other]), abs(np.mean(one) - np.mean(other)), 1
    for _ in range(shuffles):
        left, right = np.split(rng.permutation(cards), 2)
        farther += abs(left.mean() - right.mean()) >= seen - 1e-9
    return float(farther / (1 + shuffles))


def _needed(sigma: float, effect: float) -> int:
    return math.ceil(2 * (3 * sigma / effect) ** 2)


@planted("seeds_needed", "`ddof=1`")
def divides_by_n(losses: Losses, effect: float) -> int:
    return _needed(float(np.std(losses)), effect)


@planted("seeds_needed", "not one alone")
def forgets_the_luck_of_the_other_side(losses: Losses, effect: float) -> int:
    return math.ceil((3 * float(np.std(losses, ddof=1)) / effect) ** 2)


@planted("seeds_needed", "round to the other side")
def rounds_down(losses: Losses, effect: float) -> int:
    return math.floor(2 * (3 * float(np.std(losses, ddof=1)) / effect) ** 2)


@planted("seeds_needed", "the largest minus the smallest is not")
def takes_the_range_for_the_deviation(losses: Losses, effect: float) -> int:
    return _needed(float(np.ptp(losses)), effect)


@planted("seeds_needed", "falls with the root of n")
def forgets_the_square(losses: Losses, effect: float) -> int:
    return math.ceil(math.sqrt(2) * 3 * float(np.std(losses, ddof=1)) / abs(effect))


@planted("seeds_needed", "no number of runs")
def leaves_it_unrounded(losses: Losses, effect: float) -> float:
    return 2 * (3 * float(np.std(losses, ddof=1)) / effect) ** 2


@planted("seeds_needed", "one standard deviation, not three")
def asks_for_one_deviation(losses: Losses, effect: float) -> int:
    return math.ceil(2 * (float(np.std(losses, ddof=1)) / effect) ** 2)


@planted("seeds_needed", "Square both sides")
def solves_without_squaring(losses: Losses, effect: float) -> int:
    return math.ceil(2 * 3 * float(np.std(losses, ddof=1)) / abs(effect))


@planted("seeds_needed", "squared along with it")
def leaves_the_three_outside(losses: Losses, effect: float) -> int:
    return math.ceil(2 * 3 * (float(np.std(losses, ddof=1)) / effect) ** 2)


@planted("seeds_needed", "How many does each side need")
def adds_both_sides(losses: Losses, effect: float) -> int:
    return 2 * _needed(float(np.std(losses, ddof=1)), effect)


@planted("seeds_needed", "makes it no smaller")
def takes_the_error_of_a_mean(losses: Losses, effect: float) -> int:
    return _needed(float(np.std(losses, ddof=1)) / math.sqrt(len(losses)), effect)


@planted("seeds_needed", "How many in all?")
def counts_those_still_missing(losses: Losses, effect: float) -> int:
    return max(0, _needed(float(np.std(losses, ddof=1)), effect) - len(losses))
