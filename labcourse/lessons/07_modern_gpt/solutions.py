"""Solutions of lesson 07's exercises."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import torch
from torch import Tensor


def once_around(base: float, head_dim: int, pair: int) -> float:
    """Each position turns pair $i$ by $\\theta_i = b^{-2i/d_h}$ radians, and once around is $2\\pi$ radians.

    So it takes $2\\pi / \\theta_i = 2\\pi\\, b^{2i/d_h}$ positions: 6.3 for the first pair whatever the base,
    and nearly $2\\pi b$ for the last one. The base decides how slow the slow pairs are.
    """
    return 2 * math.pi * base ** (2 * pair / head_dim)


def phone_heads(n_layers: int, n_heads: int, head_dim: int, context: int, budget: int) -> int:
    """For each position, block and key/value head the cache keeps a key and a value: 2 times `head_dim`
    numbers, of 2 bytes each. Query heads are used once and not kept, so `n_heads` says only which numbers of
    heads are allowed: those that divide it, not only its halves.
    """
    bytes_per_head = 2 * n_layers * head_dim * context * 2
    allowed = [heads for heads in range(1, n_heads + 1) if n_heads % heads == 0]
    return max((heads for heads in allowed if heads * bytes_per_head <= budget), default=0)


def changes_nothing() -> str:
    """- **A**: a score sees only the distance between two positions, and all distances are as before.
    - **C**: every score is a product of one query and one key, in which the 2 and the half cancel.
    - **F**: the hidden feature is proportional to `up`'s output, and `down` is linear.
    - **G**: query, key and value are linear in what the norm gives out, and nothing else reads it.

    **B** would hold for a norm alone, but the residual stream adds what a block computes to doubled numbers.
    **D** would hold without RoPE: with it, features 0 and 1 have partners and speeds of their own.
    **E** fails at SiLU, which is not linear. **H**: a value meets no second turned vector, so its turn stays.
    """
    return "ACFG"


def repair_rope_cache(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    turn: Callable[[Tensor, int], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Three mistakes. A new token's position is the number of tokens before it, which is what the cache
    holds: `turn` must start there, for query and key. Keys are kept *after* their turn, so they must not be
    turned again when they are read. And values are not turned at all: only scores know positions.

    (Keeping keys before their turn, and turning all of them at every step, is right too, but costs more.)
    """
    start = keys.shape[2]
    q, k = turn(q, start), turn(k, start)
    keys, values = torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)
    scores = q @ keys.mT / q.shape[-1] ** 0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1 + keys.shape[2] - q.shape[2])
    mixed = scores.masked_fill(future, -torch.inf).softmax(dim=-1) @ values
    return mixed, keys, values


def pooled_heads(weight: Tensor, n_heads: int, n_kv_heads: int) -> Tensor:
    """The rows of a projection are features: first all of head 0, then all of head 1. Cut them into groups,
    heads of a group, and features of a head, and take the mean over the heads of a group alone.

    Groups are neighbours, because query head $j$ reads key head $\\lfloor j\\,h_{kv}/h \\rfloor$.
    """
    heads = weight.unflatten(0, (n_kv_heads, n_heads // n_kv_heads, -1))  # (groups, per group, head_dim, d)
    return heads.mean(dim=1).flatten(0, 1)


def luck_or_gain(ours: list[float], theirs: list[float]) -> float:
    """If the change did nothing, all losses are equal in kind, and which of them fell to which hand is luck.
    So deal them in every possible way, and count how often luck alone brings the means as far apart.

    Places are dealt and not values, so that equal losses stay apart; the real deal is one of them, so the
    share is never 0. (The tiny number guards against rounding.) Known as a permutation test (Fisher, 1935).
    """
    losses = [*ours, *theirs]

    def apart(hand: tuple[int, ...]) -> float:
        mine = [losses[place] for place in hand]
        rest = [losses[place] for place in range(len(losses)) if place not in hand]
        return abs(sum(mine) / len(mine) - sum(rest) / len(rest))

    gaps = [apart(hand) for hand in combinations(range(len(losses)), len(ours))]
    return sum(gap >= gaps[0] - 1e-12 for gap in gaps) / len(gaps)
