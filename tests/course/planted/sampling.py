"""Wrong answers to lesson 05's exercises."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from labkit.model import GPT, KVCache
from planted import planted

Says = Callable[[Tensor], Tensor]


@planted("how_many_stay", "is there one token in fourth place")
def a_tie_is_broken() -> tuple[int, ...]:
    return 4, 2, 3, 1, 2


@planted("how_many_stay", "crosses the line belongs to the set")
def top_p_stops_before_the_line() -> tuple[int, ...]:
    return 5, 1, 3, 1, 1


@planted("how_many_stay", "compared with 0.3 itself")
def min_p_without_the_leader() -> tuple[int, ...]:
    return 5, 2, 1, 1, 2


@planted("how_many_stay", "as many as without it")
def temperature_changes_nothing() -> list[int]:
    return [5, 2, 3, 2, 2]


@planted("how_many_stay", "more than without it")
def temperature_the_wrong_way_round() -> tuple[int, ...]:
    return 5, 2, 3, 3, 2


@planted("how_many_stay", "as few as in the other order")
def the_order_does_not_matter() -> tuple[int, ...]:
    return 5, 2, 3, 1, 1


@planted("how_many_stay", "five whole numbers")
def only_the_first_three() -> tuple[int, ...]:
    return 5, 2, 3


@planted("which_temperature", "after the softmax, and then another")
def temperature_after_softmax(logits: Tensor, tokens: Tensor, candidates: Sequence[float]) -> float:
    def score(tau: float) -> float:
        said = (logits.softmax(-1) / tau).log_softmax(-1)
        return said.gather(-1, tokens[:, None]).sum().item()

    return max(candidates, key=score)


@planted("which_temperature", "such rows do not sum to 1")
def probabilities_divided(logits: Tensor, tokens: Tensor, candidates: Sequence[float]) -> float:
    def score(tau: float) -> float:
        return (logits.softmax(-1) / tau).log().gather(-1, tokens[:, None]).sum().item()

    return max(candidates, key=score)


@planted("which_temperature", "does each row sum to 1")
def softmax_over_the_text(logits: Tensor, tokens: Tensor, candidates: Sequence[float]) -> float:
    def score(tau: float) -> float:
        return (logits / tau).log_softmax(0).gather(-1, tokens[:, None]).sum().item()

    return max(candidates, key=score)


@planted("which_temperature", "Is the softmax missing")
def no_softmax(logits: Tensor, tokens: Tensor, candidates: Sequence[float]) -> float:
    return max(candidates, key=lambda tau: (logits / tau).gather(-1, tokens[:, None]).sum().item())


@planted("which_temperature", "is 0 in float32")
def product_of_probabilities(logits: Tensor, tokens: Tensor, candidates: Sequence[float]) -> float:
    def score(tau: float) -> float:
        return (logits / tau).softmax(-1).gather(-1, tokens[:, None]).prod().item()

    return max(candidates, key=score)


@planted("which_temperature", "You added probabilities")
def the_mean_probability(logits: Tensor, tokens: Tensor, candidates: Sequence[float]) -> float:
    def score(tau: float) -> float:
        return (logits / tau).softmax(-1).gather(-1, tokens[:, None]).mean().item()

    return max(candidates, key=score)


@planted("which_temperature", "can be 0 in float64")
def product_of_python_numbers(logits: Tensor, tokens: Tensor, candidates: Sequence[float]) -> float:
    def score(tau: float) -> float:
        rows = (logits / tau).softmax(-1)
        return math.prod(rows[place, token].item() for place, token in enumerate(tokens.tolist()))

    return max(candidates, key=score)


@planted("which_temperature", "how often the likeliest token comes")
def share_of_the_leaders(logits: Tensor, tokens: Tensor, candidates: Sequence[float]) -> float:
    share = (logits.argmax(-1) == tokens).double().mean()

    def apart(tau: float) -> float:
        return ((logits / tau).softmax(-1).amax(-1).mean() - share).abs().item()

    return min(candidates, key=apart)


@planted("which_temperature", "*least* likely")
def the_smallest_log_probability(logits: Tensor, tokens: Tensor, candidates: Sequence[float]) -> float:
    def score(tau: float) -> float:
        return (logits / tau).log_softmax(-1).gather(-1, tokens[:, None]).sum().item()

    return min(candidates, key=score)


@planted("which_temperature", "not one of the candidates")
def returns_the_place_of_it(logits: Tensor, tokens: Tensor, candidates: Sequence[float]) -> float:
    scores = [(logits / tau).log_softmax(-1).gather(-1, tokens[:, None]).sum() for tau in candidates]
    return int(torch.stack(scores).argmax())


def _filtered(logits: Tensor, order: Tensor, share: float) -> Tensor:
    probabilities = logits.softmax(-1).gather(-1, order)
    before = probabilities.cumsum(-1) - probabilities
    keep = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before < share)
    return logits.masked_fill(~keep, -torch.inf)


def _distance(logits: Tensor) -> Tensor:
    logp = logits.log_softmax(-1)
    return (-logp + (logp.exp() * logp).sum(-1, keepdim=True)).abs()


@planted("typical", "In some row nothing is left")
def crossing_token_dropped(logits: Tensor, share: float) -> Tensor:
    order = _distance(logits).argsort(-1)
    covered = logits.softmax(-1).gather(-1, order).cumsum(-1)
    keep = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, covered <= share)
    return logits.masked_fill(~keep, -torch.inf)


@planted("typical", "still in sorted order")
def not_scattered_back(logits: Tensor, share: float) -> Tensor:
    order = _distance(logits).argsort(-1)
    probabilities = logits.softmax(-1).gather(-1, order)
    before = probabilities.cumsum(-1) - probabilities
    return logits.masked_fill(before >= share, -torch.inf)


@planted("typical", "This is top-p")
def sorts_by_probability(logits: Tensor, share: float) -> Tensor:
    return _filtered(logits, logits.argsort(-1, descending=True), share)


@planted("typical", "This is top-p")
def without_the_absolute_value(logits: Tensor, share: float) -> Tensor:
    logp = logits.log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1, keepdim=True)
    return _filtered(logits, (-logp - entropy).argsort(-1), share)


@planted("typical", "the wrong way round")
def farthest_first(logits: Tensor, share: float) -> Tensor:
    return _filtered(logits, _distance(logits).argsort(-1, descending=True), share)


@planted("typical", "instead of the vocabulary")
def entropy_of_the_whole_batch(logits: Tensor, share: float) -> Tensor:
    logp = logits.log_softmax(-1)
    entropy = -(logp.exp() * logp).sum() / len(logits)
    return _filtered(logits, (-logp - entropy).abs().argsort(-1), share)


@planted("typical", "instead of the vocabulary")
def softmax_over_the_batch(logits: Tensor, share: float) -> Tensor:
    logp = logits.log_softmax(0)
    entropy = -(logp.exp() * logp).sum(-1, keepdim=True)
    return _filtered(logits, (-logp - entropy).abs().argsort(-1), share)


@planted("typical", "a token counts as much as it is likely")
def plain_mean_for_entropy(logits: Tensor, share: float) -> Tensor:
    logp = logits.log_softmax(-1)
    return _filtered(logits, (logp.mean(-1, keepdim=True) - logp).abs().argsort(-1), share)


@planted("typical", "The entropy is in bits")
def entropy_in_bits_alone(logits: Tensor, share: float) -> Tensor:
    logp = logits.log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1, keepdim=True) / math.log(2)
    return _filtered(logits, (-logp - entropy).abs().argsort(-1), share)


@planted("typical", "another number than before")
def returns_probabilities(logits: Tensor, share: float) -> Tensor:
    return _filtered(logits, _distance(logits).argsort(-1), share).softmax(-1)


@planted("repair_cache", "is one read twice")
def last_token_of_the_prompt_read_twice(model: GPT, ids: Tensor, count: int) -> Tensor:
    cache = KVCache(model.config, len(ids))
    model(ids, cache=cache)
    for _ in range(count):
        logits = model(ids[:, -1:], cache=cache)[:, -1]
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    return ids


@planted("repair_cache", "some call reads several tokens")
def whole_text_into_the_cache(model: GPT, ids: Tensor, count: int) -> Tensor:
    cache = KVCache(model.config, len(ids))
    logits = model(ids, cache=cache)[:, -1]
    for turn in range(count):
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
        if turn < count - 1:
            logits = model(ids, cache=cache)[:, -1]
    return ids


@planted("repair_cache", "What is saved?")
def a_new_cache_for_every_token(model: GPT, ids: Tensor, count: int) -> Tensor:
    for _ in range(count):
        logits = model(ids, cache=KVCache(model.config, len(ids)))[:, -1]
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    return ids


@planted("repair_cache", "alone and without the cache")
def newest_token_without_the_cache(model: GPT, ids: Tensor, count: int) -> Tensor:
    cache = KVCache(model.config, len(ids))
    logits = model(ids, cache=cache)[:, -1]
    for _ in range(count):
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
        logits = model(ids[:, -1:])[:, -1]
    return ids


@planted("repair_cache", "is a token chosen for each row")
def one_token_for_all_rows(model: GPT, ids: Tensor, count: int) -> Tensor:
    cache = KVCache(model.config, len(ids))
    logits = model(ids, cache=cache)[:, -1]
    for turn in range(count):
        token = (logits[0].argmax()).expand(len(ids), 1)
        ids = torch.cat([ids, token], dim=1)
        if turn < count - 1:
            logits = model(token, cache=cache)[:, -1]
    return ids


@planted("repair_cache", "not (3, 14)")
def only_the_new_ids(model: GPT, ids: Tensor, count: int) -> Tensor:
    cache, new = KVCache(model.config, len(ids)), []
    logits = model(ids, cache=cache)[:, -1]
    for _ in range(count):
        new.append(logits.argmax(-1, keepdim=True))
        logits = model(new[-1], cache=cache)[:, -1]
    return torch.cat(new, dim=1)


def _beam(
    says: Says,
    ids: Sequence[int],
    count: int,
    b: int,
    *,
    copies: int = 1,
    favourite: bool = False,
    summed: bool = True,
    by_parent: bool = True,
    logs: bool = True,
) -> Tensor:
    """Beams of ids, best first, with one thing or another gone wrong."""
    rows, scores = torch.tensor([list(ids)] * copies), torch.zeros(copies)
    for _ in range(count):
        said = says(rows)
        said = said if logs else said.exp()
        totals = (scores[:, None] + said if summed else said)[: 1 if favourite else None].flatten()
        scores, index = totals.topk(min(b, len(totals)))
        parent = index // said.shape[-1] if by_parent else torch.arange(len(index)) % len(rows)
        rows = torch.cat([rows[parent], index[:, None] % said.shape[-1]], dim=1)
    return rows[:, len(ids) :]


@planted("beam_search", "the same child three times")
def all_beams_alike_at_first(says: Says, ids: Sequence[int], count: int, b: int) -> list[int]:
    return _beam(says, ids, count, b, copies=b)[0].tolist()


@planted("beam_search", "You multiply log-probabilities")
def log_probabilities_multiplied(says: Says, ids: Sequence[int], count: int, b: int) -> list[int]:
    rows, scores = torch.tensor([list(ids)]), torch.ones(1)
    for _ in range(count):
        totals = scores[:, None] * says(rows)
        scores, index = totals.flatten().topk(min(b, totals.numel()))
        rows = torch.cat([rows[index // totals.shape[1]], index[:, None] % totals.shape[1]], dim=1)
    return rows[0, len(ids) :].tolist()


@planted("beam_search", "from 0 on")
def log_probabilities_multiplied_from_zero(says: Says, ids: Sequence[int], count: int, b: int) -> list[int]:
    rows, scores = torch.tensor([list(ids)]), torch.zeros(1)
    for _ in range(count):
        totals = scores[:, None] * says(rows)
        scores, index = totals.flatten().topk(min(b, totals.numel()))
        rows = torch.cat([rows[index // totals.shape[1]], index[:, None] % totals.shape[1]], dim=1)
    return rows[0, len(ids) :].tolist()


@planted("beam_search", "one child that stays")
def each_beam_alone_to_the_end(says: Says, ids: Sequence[int], count: int, b: int) -> list[int]:
    said = says(torch.tensor([list(ids)]))[0]
    scores, first = said.topk(min(b, len(said)))
    rows = torch.cat([torch.tensor([list(ids)] * len(first)), first[:, None]], dim=1)
    for _ in range(count - 1):
        best, token = says(rows).max(-1)
        scores, rows = scores + best, torch.cat([rows, token[:, None]], dim=1)
    return rows[scores.argmax(), len(ids) :].tolist()


@planted("beam_search", "those of one beam only")
def one_beam_has_all_the_children(says: Says, ids: Sequence[int], count: int, b: int) -> list[int]:
    return _beam(says, ids, count, b, favourite=True)[0].tolist()


@planted("beam_search", "ranked by their last token alone")
def log_probabilities_not_summed(says: Says, ids: Sequence[int], count: int, b: int) -> list[int]:
    return _beam(says, ids, count, b, summed=False)[0].tolist()


@planted("beam_search", "to the wrong beginnings")
def rows_stay_where_they_were(says: Says, ids: Sequence[int], count: int, b: int) -> list[int]:
    return _beam(says, ids, count, b, by_parent=False)[0].tolist()


@planted("beam_search", "an exp too many")
def probabilities_added(says: Says, ids: Sequence[int], count: int, b: int) -> list[int]:
    return _beam(says, ids, count, b, logs=False)[0].tolist()


@planted("beam_search", "not the likeliest")
def returns_the_last_beam(says: Says, ids: Sequence[int], count: int, b: int) -> list[int]:
    return _beam(says, ids, count, b)[-1].tolist()


@planted("beam_search", "the prompt is no part")
def returns_the_prompt_too(says: Says, ids: Sequence[int], count: int, b: int) -> list[int]:
    return [*ids, *_beam(says, ids, count, b)[0].tolist()]


@planted("beam_search", "keep only b of them")
def keeps_ten_times_as_many(says: Says, ids: Sequence[int], count: int, b: int) -> list[int]:
    found = _beam(says, ids, count, b)[0]
    _beam(says, ids, count, 10 * b)
    return found.tolist()


@planted("beam_search", "out of range")
def beam_wider_than_the_vocabulary(
    log_probabilities: Says, ids: Sequence[int], count: int, b: int
) -> list[int]:
    rows, scores = torch.tensor([ids]), torch.zeros(1)
    for _ in range(count):
        said = scores[:, None] + log_probabilities(rows)
        scores, at = said.flatten().topk(b)
        rows = torch.cat([rows[at // said.shape[1]], at[:, None] % said.shape[1]], dim=1)
    return rows[0, len(ids) :].tolist()
