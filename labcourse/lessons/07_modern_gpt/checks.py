"""Checks of lesson 07's exercises."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import combinations
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labcourse.check import Answer, expect
from labkit.config import GPTConfig
from labkit.model import GPT, RotaryPositions


def once_around(answer: Answer) -> str:
    first = _number(answer(10_000, 64, 0))
    expect(
        not math.isclose(first, 360),
        "Pair 0 took 360 positions: that would be a degree per position, and angles here are in radians.",
    )
    expect(
        not math.isclose(first, 1 / math.tau, rel_tol=1e-4),
        f"Pair 0 took {first:.4g} positions: that is the part of a turn in one position.",
    )
    expect(
        not any(math.isclose(first, math.tau * 10_000 ** (two / 64), rel_tol=1e-4) for two in (2, -2)),
        f"Pair 0 took {first:.4g} positions, as its neighbour would: pairs are counted from 0.",
    )
    expect(
        not math.isclose(first, math.tau / 64, rel_tol=1e-4),
        f"Pair 0 took {first:.4g} positions, a turn divided by the features: powers come before divisions.",
    )
    expect(first not in (6, 7), f"Pair 0 took exactly {first:g} positions: is the result rounded?")
    expect(
        math.isclose(first, math.tau, rel_tol=1e-4),
        f"Pair 0 turns by one radian per position, whatever the base, and took {first:.4g} positions. "
        "How many radians are a whole turn?",
    )
    for base, head_dim, pair in ((500, 10, 3), (10_000, 64, 31), (100_000, 64, 31)):
        took = _number(answer(base, head_dim, pair))
        said = f"With base {base:,} and {head_dim} features pair {pair} took {took:.4g} positions"
        expect(took != first, f"{said}, as many as pair 0: is the exponent rounded to a whole number?")
        expect(took > first, f"{said}, fewer than pair 0: later pairs turn slower. The exponent's sign?")
        expect(
            not math.isclose(took, math.tau * base ** (pair / head_dim), rel_tol=1e-4),
            f"{said}, too few. By the last pair the exponent has come close to 1, and yours only to a half.",
        )
        right = math.tau * base ** (2 * pair / head_dim)
        expect(math.isclose(took, right, rel_tol=1e-4), f"{said}: is the angle that of the formula?")
    return (
        "SmolLM2's slowest pair needs 438,463 positions for a turn. Within the context of 8,192 it moves by "
        "7 degrees: nearly a pair without positions."
    )


def phone_heads(answer: Answer) -> str:
    cases = (
        (5, 12, 8, 100, 10**9),
        (5, 12, 8, 100, 130_000),
        (5, 12, 8, 100, 96_000),
        (5, 12, 8, 100, 15_999),
        (30, 9, 64, 8192, 2 * 10**8),
        (24, 16, 80, 32_768, 10**9),
    )
    mistakes: dict[str, Callable[..., bool]] = {
        "half of the bytes are missing: what is kept of a position, and how many bytes are 16 bits?": (
            lambda heads, n_heads, each, budget: heads * each <= 2 * budget
        ),
        "bits were counted against a budget in bytes.": (
            lambda heads, n_heads, each, budget: 8 * heads * each <= budget
        ),
        "it is all heads or none: the cache holds key/value heads, and no query heads.": (
            lambda heads, n_heads, each, budget: n_heads * each <= budget
        ),
        "a cache of exactly the budget was refused, and *at most* allows it.": (
            lambda heads, n_heads, each, budget: heads * each < budget
        ),
    }
    given = [_number(answer(*case)) for case in cases]
    for heads, (_, n_heads, *_) in zip(given, cases, strict=True):
        expect(heads.is_integer() and heads >= 0, f"A whole number of heads is wanted, not {heads:g}.")
        expect(heads <= n_heads, f"It said {heads:g} for {n_heads} query heads: more than could read them.")
        expect(
            heads == 0 or n_heads % heads == 0,
            f"It said {heads:g} for {n_heads} query heads: the groups would differ in size.",
        )
    right = [_most_heads(*case, lambda heads, _, each, budget: heads * each <= budget) for case in cases]
    shared = [most and n_heads // most for most, (_, n_heads, *_) in zip(right, cases, strict=True)]
    expect(given != shared, "It said how many query heads share one. How many key/value heads are there?")
    for case, heads, most in zip(cases, given, right, strict=True):
        said = "{} blocks, {} query heads of {} features, {:,} positions, {:,} bytes: ".format(*case)
        for says, fits in mistakes.items():
            expect(heads == most or given != [_most_heads(*each, fits) for each in cases], said + says)
        expect(most > 0 or heads != 1, f"{said}not even one fits, and it said 1.")
        expect(heads <= most, f"{said}{heads:g} do not fit. Which factor is missing?")
        expect(heads == most, f"{said}it said {heads:g}, and more would fit. Is a divisor left out?")
    return "The phone's model may keep 2 key/value heads: three would fit, but three cannot share out 16."


def _most_heads(
    n_layers: int, n_heads: int, head_dim: int, context: int, budget: int, fits: Callable[..., bool]
) -> int:
    each = 2 * n_layers * head_dim * context * 2
    divisors = [heads for heads in range(1, n_heads + 1) if n_heads % heads == 0]
    return max((heads for heads in divisors if fits(heads, n_heads, each, budget)), default=0)


def changes_nothing(answer: Answer) -> str:
    given = answer()
    expect(
        isinstance(given, str | list | tuple | set) and all(isinstance(each, str) for each in given),
        'Return letters, such as "AB" or {"A", "B"}.',
    )
    letters = {each.upper() for each in given if each.strip(" ,")}
    expect(letters <= set("ABCDEFGH"), f"There are the letters A to H; it has {sorted(letters)}.")
    same = what_changes_nothing()
    for letter in sorted(letters - same):
        expect(False, f"{letter} changes the predictions. {REASONS[letter]}")
    missing = len(same - letters)
    expect(
        not missing,
        f"What you name changes nothing, and {missing} more of the eight do not either. Where does a factor "
        "meet its inverse with only straight lines between? What does a score know of positions?",
    )
    return "Such freedoms are one reason why two trainings never end with the same weights."


def repair_rope_cache_stub(  # type: ignore[no-untyped-def]  # as in the lesson
    q, k, v, keys, values, turn
):
    q, k, v = turn(q, 0), turn(k, 0), turn(v, 0)
    keys, values = torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)
    scores = q @ turn(keys, 0).mT / q.shape[-1] ** 0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1 + keys.shape[2] - q.shape[2])
    mixed = scores.masked_fill(future, -torch.inf).softmax(dim=-1) @ values
    return mixed, keys, values


def repair_rope_cache(answer: Answer) -> str:
    rotary = RotaryPositions(context_length=40, head_dim=6)
    q, k, v = torch.randn(3, 2, 3, 9, 6)

    def read(v: Tensor, pieces: tuple[int, ...], turn: Callable[[Tensor, int], Tensor] = rotary) -> Tensor:
        keys = values = torch.empty(2, 3, 0, 6)
        mixed, at = [], 0
        for piece in pieces:
            new = (each[:, :, at : at + piece] for each in (q, k, v))
            given = answer(*new, keys, values, lambda x, start: turn(x, start))
            right_kind = isinstance(given, tuple | list) and len(given) == 3
            expect(
                right_kind and all(isinstance(each, Tensor) for each in given),
                "Three tensors are wanted: what was mixed, the keys, the values.",
            )
            part, keys, values = given
            at += piece
            sizes = {"what was mixed": (part, piece), "the keys": (keys, at), "the values": (values, at)}
            for name, (each, seq) in sizes.items():
                expect(
                    each.shape == (2, 3, seq, 6),
                    f"After {at} tokens, {piece} of them new, {name} came with shape {tuple(each.shape)}, "
                    f"not (2, 3, {seq}, 6).",
                )
            mixed.append(part)
        return torch.cat(mixed, dim=2)

    equal = v[:, :, :1].expand_as(v)
    expect(
        torch.allclose(read(equal, (5, 1, 3)), equal, atol=1e-5),
        "With the same value at every position each mixture must be that value, and it is not. "
        "By the formula, what happens to values?",
    )
    unturned = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    expect(
        torch.allclose(read(v, (5, 1, 3), lambda x, start: x), unturned, atol=1e-5),
        "Even where `turn` turns nothing the mixtures are wrong. Which keys does a new token see, and what "
        "but positions was changed?",
    )
    right = F.scaled_dot_product_attention(rotary(q), rotary(k), v, is_causal=True)
    expect(
        torch.allclose(read(v, (9,)), right, atol=1e-5),
        "Nine tokens read at once already come out wrong: how often is each query turned, and each key, "
        "on the whole way to the score?",
    )
    expect(
        torch.allclose(read(v, (5, 1, 3)), right, atol=1e-5),
        "Nine tokens at once are right, and the same nine in pieces are not: at which position does a new "
        "token stand, in its query and in its key? Is anything in the cache turned a second time?",
    )
    return "Read in pieces or at once, the scores are the same: only then is a cache nothing but speed."


def pooled_heads(answer: Answer) -> str:
    head = torch.randn(2, 5)  # 2 features
    same = answer(head.repeat(6, 1), 6, 2)
    expect(isinstance(same, Tensor), "A tensor is wanted.")
    expect(
        same.shape == (4, 5),
        f"From 6 heads of 2 features to 2 such heads: (12, 5) must become (4, 5), not {tuple(same.shape)}.",
    )
    expect(
        not torch.allclose(same, 3 * head.repeat(2, 1)),
        "Three equal heads became one that is three times as large: a sum in place of a mean?",
    )
    factor = (same / head.repeat(2, 1)).mean()
    expect(
        torch.isclose(factor, torch.tensor(1.0)) or not torch.allclose(same, factor * head.repeat(2, 1)),
        f"Three equal heads became one that is {factor:.3g} times as large: by what is the sum divided?",
    )
    expect(
        torch.allclose(same, head.repeat(2, 1)),
        "Six equal heads became others. Are different features averaged? A head's rows stand together.",
    )
    two = torch.randn(2, 1, 2, 5)
    groups_kept = answer(two.expand(2, 3, 2, 5).reshape(12, 5), 6, 2)
    expect(
        not torch.allclose(groups_kept, two[0, 0].repeat(2, 1), atol=1e-6),
        "Heads 0, 1, 2 were equal, and 3, 4, 5. Both new heads came out as the first three: what became of "
        "the others?",
    )
    expect(
        torch.allclose(groups_kept, two.reshape(4, 5), atol=1e-6),
        "Heads 0, 1, 2 were equal, and 3, 4, 5. Both groups came out mixed: which queries share a key head?",
    )
    for n_heads, n_kv_heads, head_dim in ((6, 2, 2), (8, 4, 3), (5, 1, 4)):
        weight = torch.randn(n_heads * head_dim, 7)
        pooled = answer(weight, n_heads, n_kv_heads)
        groups = weight.view(n_heads, head_dim, 7).chunk(n_kv_heads)
        right = torch.cat([group.mean(0) for group in groups])
        expect(
            pooled.shape == right.shape and torch.allclose(pooled, right, atol=1e-6),
            f"{n_heads} different heads to {n_kv_heads}: not the mean of each group. Does every head count?",
        )
    return "So begins the conversion of a trained model to grouped queries; some more training repairs it."


def luck_or_gain(answer: Answer) -> str:
    hands = "[1, 2, 3] and [4, 5, 6.5]"
    said = _number(answer([1.0, 2.0, 3.0], [4.0, 5.0, 6.5]))
    expect(
        said > 0,
        f"It said 0 for {hands}: the deal that was really made is one of the deals, and as far apart.",
    )
    expect(said <= 1, f"It said {said:.4g} for {hands}: a share of all deals, and not their number.")
    expect(
        not math.isclose(said, 1 / 20, rel_tol=1e-4),
        f"For {hands} it said 1 in 20. With the hands exchanged they lie as far apart, the other way round.",
    )
    expect(
        said != 1,
        f"For {hands} it said 1, as if no deal lay less far apart: is a sign left in the comparison, or does "
        "it count the wrong side?",
    )
    expect(
        not math.isclose(said, 3 / 21, rel_tol=1e-4),
        f"For {hands} it said 1 in 7. The real deal is one of the 20 already: does it count twice?",
    )
    expect(
        not math.isclose(said, 18 / 20, rel_tol=1e-4),
        f"For {hands} it said 0.9, and few deals lie so far apart: is the share of the others counted?",
    )
    expect(
        math.isclose(said, 2 / 20, rel_tol=1e-4),
        f"{hands} lie as far apart as can be; it said {said:.4g}. How many ways are there to choose 3 of 6?",
    )
    said = _number(answer([3.0], [2.0, 2.5, 3.5, 4.0]))
    expect(
        math.isclose(said, 1, rel_tol=1e-4),
        f"[3] is exactly the mean of [2, 2.5, 3.5, 4], so every deal lies as far apart; it said {said:.4g}. "
        "Are means compared, with hands of different sizes?",
    )
    cases: list[tuple[list[float], list[float]]] = [
        ([2.0, 2.0, 1.0], [2.0, 2.0, 4.0, 8.0]),
        ([2.5, 2.75, 3.25], [2.0, 2.25, 3.0, 4.0, 4.125]),
    ]
    for ours, theirs in cases:
        said = _number(answer(ours, theirs))
        expect(
            math.isclose(said, _share_of_deals(ours, theirs), rel_tol=1e-4),
            f"For {ours} and {theirs} it said {said:.4g}. Is the first hand as large as the first list? "
            "And deals that differ only in which of two equal losses they hold are two deals.",
        )
    return "One seed against five can reach 1 in 6 at best: however large the gap, it could not convince."


def _share_of_deals(ours: list[float], theirs: list[float]) -> float:
    losses, n = [*ours, *theirs], len(ours)
    sums = [sum(hand) for hand in combinations(losses, n)]
    gaps = [abs(each / n - (sum(losses) - each) / len(theirs)) for each in sums]
    return sum(gap >= gaps[0] - 1e-9 for gap in gaps) / len(gaps)


def _number(value: object) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    expect(isinstance(value, Real) and not isinstance(value, bool), f"A number is wanted, not {value!r}.")
    return float(value)  # type: ignore[arg-type]


REASONS = {
    "B": "A norm hides the size from its block, but what the block adds meets a stream twice as large.",
    "D": "A product of two vectors survives any common order of their features, unless something else treats "
    "the features differently in between.",
    "E": "One of the two factors is inside a function that is no straight line.",
    "H": "In a score the common turn cancels, since two turned vectors meet. Whom does a turned value meet?",
}
"""Why what changes the predictions does so."""


def what_changes_nothing() -> set[str]:
    """The letters of exercise 3 that leave the logits of a small modern model as they are."""
    sizes: dict[str, Any] = {"d_model": 24, "n_layers": 2, "n_heads": 6, "n_kv_heads": 2, "d_ff": 40}
    parts: dict[str, Any] = {"positions": "rotary", "norm": "rmsnorm", "activation": "swiglu"}
    plain: dict[str, Any] = {"bias": False, "qkv_bias": False, "tie_weights": False}
    model = GPT(GPTConfig(vocab_size=19, context_length=120, **sizes, **parts, **plain))
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.5)
        ids = torch.randint(19, (3, 11))
        before, same = model(ids), set()
        for letter, change in _CHANGES.items():
            changed: Any = copy.deepcopy(model)
            change(changed)
            if torch.allclose(changed(ids), before, rtol=1e-3, atol=1e-3):
                same.add(letter)
    return same


def _count_from_100(model: Any) -> None:
    rotary = model.blocks[0].attention.rotary  # one for all blocks
    rotary.cos, rotary.sin = rotary.cos[100:], rotary.sin[100:]


def _double_embeddings(model: Any) -> None:
    model.token_embedding.weight.mul_(2)


def _exchange_features(model: Any) -> None:
    for block in model.blocks:
        for layer in (block.attention.query, block.attention.key):
            layer.weight.copy_(layer.weight.unflatten(0, (-1, 4))[:, [1, 0, 2, 3]].flatten(0, 1))


def _turn_values(model: Any) -> None:
    def turned(layer: nn.Module, arguments: object, v: Tensor) -> Tensor:
        heads: Tensor = attention.rotary(attention.split_heads(v))  # (batch, kv_heads, seq, head_dim)
        return heads.transpose(1, 2).flatten(2)

    for block in model.blocks:
        attention = block.attention
        attention.value.register_forward_hook(turned)


def _scale(**factors: float) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        for block in model.blocks:
            parts = {"norm": block.norm1, **dict(block.attention.named_children())}
            parts |= dict(block.mlp.named_children())
            for name, factor in factors.items():
                parts[name].weight.mul_(factor)

    return change


_CHANGES = {
    "A": _count_from_100,
    "B": _double_embeddings,
    "C": _scale(query=2, key=1 / 2),
    "D": _exchange_features,
    "E": _scale(gate=2, down=1 / 2),
    "F": _scale(up=2, down=1 / 2),
    "G": _scale(norm=2, query=1 / 2, key=1 / 2, value=1 / 2),
    "H": _turn_values,
}
