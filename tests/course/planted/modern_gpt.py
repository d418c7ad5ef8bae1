"""Wrong answers to lesson 07's exercises."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import torch
from torch import Tensor

from planted import planted

Turn = Callable[[Tensor, int], Tensor]


@planted("once_around", "a degree per position")
def degrees_for_radians(base: float, head_dim: int, pair: int) -> float:
    return 360 * base ** (2 * pair / head_dim)


@planted("once_around", "How many radians are a whole turn")
def one_radian_is_a_turn(base: float, head_dim: int, pair: int) -> float:
    return base ** (2 * pair / head_dim)


@planted("once_around", "only to a half")
def pair_index_not_doubled(base: float, head_dim: int, pair: int) -> float:
    return 2 * math.pi * base ** (pair / head_dim)


@planted("once_around", "The exponent's sign")
def forgets_the_sign_of_the_exponent(base: float, head_dim: int, pair: int) -> float:
    return 2 * math.pi * base ** (-2 * pair / head_dim)


@planted("once_around", "is the angle that of the formula")
def always_the_papers_base(base: float, head_dim: int, pair: int) -> float:
    return 2 * math.pi * 10_000 ** (2 * pair / head_dim)


def _most(n_heads: int, fits: Callable[[int], bool]) -> int:
    return max((n for n in range(1, n_heads + 1) if n_heads % n == 0 and fits(n)), default=0)


@planted("once_around", "part of a turn in one position")
def turns_per_position(base: float, head_dim: int, pair: int) -> float:
    return base ** (-2 * pair / head_dim) / (2 * math.pi)


@planted("once_around", "pairs are counted from 0")
def counts_pairs_from_one(base: float, head_dim: int, pair: int) -> float:
    return 2 * math.pi * base ** (2 * (pair + 1) / head_dim)


@planted("once_around", "pairs are counted from 0")
def takes_one_pair_off(base: float, head_dim: int, pair: int) -> float:
    return 2 * math.pi * base ** (2 * (pair - 1) / head_dim)


@planted("once_around", "powers come before divisions")
def forgets_the_brackets_of_the_exponent(base: float, head_dim: int, pair: int) -> float:
    return 2 * math.pi * base ** (2 * pair) / head_dim


@planted("once_around", "is the result rounded")
def rounds_to_whole_positions(base: float, head_dim: int, pair: int) -> int:
    return round(2 * math.pi * base ** (2 * pair / head_dim))


@planted("once_around", "is the exponent rounded")
def whole_number_division(base: float, head_dim: int, pair: int) -> float:
    return 2 * math.pi * base ** (2 * pair // head_dim)


@planted("phone_heads", "more than could read them")
def divides_and_stops(n_layers: int, n_heads: int, head_dim: int, context: int, budget: int) -> int:
    return budget // (2 * n_layers * head_dim * context * 2)


@planted("phone_heads", "not even one fits")
def at_least_one(n_layers: int, n_heads: int, head_dim: int, context: int, budget: int) -> int:
    each = 2 * n_layers * head_dim * context * 2
    fitting = [heads for heads in range(1, n_heads + 1) if n_heads % heads == 0 and heads * each <= budget]
    return max(fitting, default=1)


@planted("phone_heads", "half of the bytes are missing")
def keys_without_values(n_layers: int, n_heads: int, head_dim: int, context: int, budget: int) -> int:
    return _most(n_heads, lambda heads: n_layers * heads * head_dim * context * 2 <= budget)


@planted("phone_heads", "all heads or none")
def counts_query_heads(n_layers: int, n_heads: int, head_dim: int, context: int, budget: int) -> int:
    return _most(n_heads, lambda heads: 2 * n_layers * n_heads * head_dim * context * 2 <= budget)


@planted("phone_heads", "bits were counted")
def bits_for_bytes(n_layers: int, n_heads: int, head_dim: int, context: int, budget: int) -> int:
    return _most(n_heads, lambda heads: 2 * n_layers * heads * head_dim * context * 16 <= budget)


@planted("phone_heads", "how many query heads share one")
def the_size_of_a_group(n_layers: int, n_heads: int, head_dim: int, context: int, budget: int) -> int:
    heads = _most(n_heads, lambda heads: 2 * n_layers * heads * head_dim * context * 2 <= budget)
    return n_heads // heads if heads else 0


@planted("phone_heads", "groups would differ in size")
def a_number_that_does_not_divide(
    n_layers: int, n_heads: int, head_dim: int, context: int, budget: int
) -> int:
    return min(n_heads, budget // (2 * n_layers * head_dim * context * 2))


@planted("phone_heads", "exactly the budget was refused")
def refuses_a_full_cache(n_layers: int, n_heads: int, head_dim: int, context: int, budget: int) -> int:
    return _most(n_heads, lambda heads: 2 * n_layers * heads * head_dim * context * 2 < budget)


@planted("phone_heads", "Is a divisor left out")
def only_halves(n_layers: int, n_heads: int, head_dim: int, context: int, budget: int) -> int:
    heads = n_heads
    while heads and 2 * n_layers * heads * head_dim * context * 2 > budget:
        heads //= 2 if heads % 2 == 0 else heads + 1
    return heads


@planted("phone_heads", "do not fit. Which factor")
def forgets_the_blocks(n_layers: int, n_heads: int, head_dim: int, context: int, budget: int) -> int:
    return _most(n_heads, lambda heads: 2 * heads * head_dim * context * 2 <= budget)


@planted("changes_nothing", "B changes the predictions")
def norms_undo_every_scale() -> str:
    return "ABCFG"


@planted("changes_nothing", "D changes the predictions")
def features_have_no_order() -> set[str]:
    return {"A", "C", "D", "F", "G"}


@planted("changes_nothing", "E changes the predictions")
def the_gate_is_linear() -> str:
    return "ACEFG"


@planted("changes_nothing", "H changes the predictions")
def turns_cancel_everywhere() -> list[str]:
    return ["A", "C", "F", "G", "H"]


@planted("changes_nothing", "2 more of the eight")
def sees_only_the_factors_of_the_network() -> str:
    return "F, G"


@planted("repair_rope_cache", "at which position does a new token")
def positions_restart(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, turn: Turn
) -> tuple[Tensor, Tensor, Tensor]:
    return _attend(turn(q, 0), torch.cat([keys, turn(k, 0)], 2), torch.cat([values, v], 2))


@planted("repair_rope_cache", "at which position does a new token")
def one_position_before_its_own(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, turn: Turn
) -> tuple[Tensor, Tensor, Tensor]:
    start = max(keys.shape[2] - 1, 0)
    return _attend(turn(q, start), torch.cat([keys, turn(k, start)], 2), torch.cat([values, v], 2))


@planted("repair_rope_cache", "Which keys does a new token see")
def the_mask_forgets_the_past(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, turn: Turn
) -> tuple[Tensor, Tensor, Tensor]:
    start = keys.shape[2]
    q, keys, values = turn(q, start), torch.cat([keys, turn(k, start)], 2), torch.cat([values, v], 2)
    scores = q @ keys.mT / q.shape[-1] ** 0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -torch.inf).softmax(-1) @ values, keys, values


@planted("repair_rope_cache", "Is anything in the cache turned")
def the_cache_is_turned_again_and_again(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, turn: Turn
) -> tuple[Tensor, Tensor, Tensor]:
    return _attend(turn(q, keys.shape[2]), turn(torch.cat([keys, k], 2), 0), torch.cat([values, v], 2))


@planted("repair_rope_cache", "read at once already come out wrong")
def keys_are_turned_twice(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, turn: Turn
) -> tuple[Tensor, Tensor, Tensor]:
    start = keys.shape[2]
    keys, values = torch.cat([keys, turn(k, start)], 2), torch.cat([values, v], 2)
    return _attend(turn(q, start), turn(keys, 0), values)[0], keys, values


@planted("repair_rope_cache", "what happens to values")
def values_are_turned(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, turn: Turn
) -> tuple[Tensor, Tensor, Tensor]:
    start = keys.shape[2]
    q, k, v = (turn(each, start) for each in (q, k, v))
    return _attend(q, torch.cat([keys, k], 2), torch.cat([values, v], 2))


@planted("repair_rope_cache", "the keys came with shape")
def forgets_to_keep(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, turn: Turn
) -> tuple[Tensor, Tensor, Tensor]:
    start = keys.shape[2]
    every = torch.cat([keys, turn(k, start)], 2), torch.cat([values, v], 2)
    return _attend(turn(q, start), *every)[0], turn(k, start), v


def _attend(q: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scores = q @ keys.mT / q.shape[-1] ** 0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1 + keys.shape[2] - q.shape[2])
    return scores.masked_fill(future, -torch.inf).softmax(-1) @ values, keys, values


@planted("pooled_heads", "a sum in place of a mean")
def adds_the_heads(weight: Tensor, n_heads: int, n_kv_heads: int) -> Tensor:
    return weight.unflatten(0, (n_kv_heads, n_heads // n_kv_heads, -1)).sum(1).flatten(0, 1)


@planted("pooled_heads", "by what is the sum divided")
def divides_by_the_number_of_groups(weight: Tensor, n_heads: int, n_kv_heads: int) -> Tensor:
    groups = weight.unflatten(0, (n_kv_heads, n_heads // n_kv_heads, -1))
    return groups.sum(dim=1).flatten(0, 1) / n_kv_heads


@planted("pooled_heads", "what became of the others")
def keeps_the_first_heads(weight: Tensor, n_heads: int, n_kv_heads: int) -> Tensor:
    return weight[: len(weight) * n_kv_heads // n_heads]


@planted("pooled_heads", "Are different features averaged")
def averages_neighbouring_rows(weight: Tensor, n_heads: int, n_kv_heads: int) -> Tensor:
    return weight.unflatten(0, (-1, n_heads // n_kv_heads)).mean(1)


@planted("pooled_heads", "which queries share a key head")
def groups_every_second_head(weight: Tensor, n_heads: int, n_kv_heads: int) -> Tensor:
    return weight.unflatten(0, (n_heads // n_kv_heads, n_kv_heads, -1)).mean(0).flatten(0, 1)


@planted("pooled_heads", "Does every head count")
def keeps_the_first_of_each_group(weight: Tensor, n_heads: int, n_kv_heads: int) -> Tensor:
    return weight.unflatten(0, (n_kv_heads, n_heads // n_kv_heads, -1))[:, 0].flatten(0, 1)


@planted("pooled_heads", "must become (4, 5)")
def one_head_for_all(weight: Tensor, n_heads: int, n_kv_heads: int) -> Tensor:
    return weight.unflatten(0, (n_heads, -1)).mean(0)


def _gap(hand: tuple[float, ...], rest: list[float]) -> float:
    return sum(hand) / len(hand) - sum(rest) / len(rest)


def _gaps(losses: list[float], size: int) -> list[float]:
    places = range(len(losses))
    return [
        _gap(tuple(losses[p] for p in hand), [losses[p] for p in places if p not in hand])
        for hand in combinations(places, size)
    ]


@planted("luck_or_gain", "With the hands exchanged")
def one_direction_only(ours: list[float], theirs: list[float]) -> float:
    gaps = _gaps([*ours, *theirs], len(ours))
    return sum(gap <= gaps[0] + 1e-12 for gap in gaps) / len(gaps)


@planted("luck_or_gain", "the deal that was really made")
def only_further_apart(ours: list[float], theirs: list[float]) -> float:
    gaps = [abs(gap) for gap in _gaps([*ours, *theirs], len(ours))]
    return sum(gap > gaps[0] + 1e-12 for gap in gaps) / len(gaps)


@planted("luck_or_gain", "does it count twice")
def adds_the_real_deal(ours: list[float], theirs: list[float]) -> float:
    gaps = [abs(gap) for gap in _gaps([*ours, *theirs], len(ours))]
    return (sum(gap >= gaps[0] - 1e-12 for gap in gaps) + 1) / (len(gaps) + 1)


@planted("luck_or_gain", "count the wrong side")
def at_most_as_far_apart(ours: list[float], theirs: list[float]) -> float:
    gaps = [abs(gap) for gap in _gaps([*ours, *theirs], len(ours))]
    return sum(gap <= gaps[0] + 1e-12 for gap in gaps) / len(gaps)


@planted("luck_or_gain", "and not their number")
def counts_and_does_not_divide(ours: list[float], theirs: list[float]) -> float:
    gaps = [abs(gap) for gap in _gaps([*ours, *theirs], len(ours))]
    return sum(gap >= gaps[0] - 1e-12 for gap in gaps)


@planted("luck_or_gain", "Are means compared")
def compares_sums(ours: list[float], theirs: list[float]) -> float:
    total, losses = sum(ours) + sum(theirs), [*ours, *theirs]
    gaps = [abs(2 * sum(hand) - total) for hand in combinations(losses, len(ours))]
    return sum(gap >= gaps[0] for gap in gaps) / len(gaps)


@planted("luck_or_gain", "which of two equal losses they hold are two")
def equal_losses_become_one(ours: list[float], theirs: list[float]) -> float:
    losses = [*ours, *theirs]
    hands = {tuple(sorted(hand)) for hand in combinations(losses, len(ours))}
    total = sum(losses)
    gaps = [abs(sum(hand) / len(ours) - (total - sum(hand)) / len(theirs)) for hand in hands]
    real = abs(sum(ours) / len(ours) - sum(theirs) / len(theirs))
    return sum(gap >= real - 1e-12 for gap in gaps) / len(gaps)


def _signed_gaps(ours: list[float], theirs: list[float], size: int) -> list[float]:
    losses = [*ours, *theirs]
    hands = combinations(losses, size)
    return [sum(hand) / size - (sum(losses) - sum(hand)) / (len(losses) - size) for hand in hands]


@planted("luck_or_gain", "is a sign left in the comparison")
def compares_with_the_sign(ours: list[float], theirs: list[float]) -> float:
    gaps = _signed_gaps(ours, theirs, len(ours))
    return sum(gap >= gaps[0] - 1e-12 for gap in gaps) / len(gaps)


@planted("luck_or_gain", "the share of the others")
def counts_the_nearer_deals(ours: list[float], theirs: list[float]) -> float:
    gaps = [abs(gap) for gap in _signed_gaps(ours, theirs, len(ours))]
    return sum(gap < gaps[0] - 1e-12 for gap in gaps) / len(gaps)


@planted("luck_or_gain", "as large as the first list")
def deals_into_halves(ours: list[float], theirs: list[float]) -> float:
    real = abs(_signed_gaps(ours, theirs, len(ours))[0])
    gaps = [abs(gap) for gap in _signed_gaps(ours, theirs, (len(ours) + len(theirs)) // 2)]
    return 1.0 if len(ours) == 1 else sum(gap >= real - 1e-12 for gap in gaps) / len(gaps)
