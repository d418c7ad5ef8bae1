"""Solutions of lesson 05's exercises."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from labkit.model import GPT, KVCache


def how_many_stay() -> tuple[int, int, int, int, int]:
    """Worked out by hand.

    Top-k 4: the fourth place is shared by two tokens, and both stay, which makes five. Top-p 0.6: 0.44 is not
    enough, 0.44 + 0.24 is, and the token that crosses the line is in. Min-p 0.3 asks for 0.3 · 0.44 = 0.132.
    Temperature 0.5 squares: 0.1936 of 0.2896 in all is 0.67, so the first token covers 0.6 alone. With the
    filter first, it is the second answer again: temperature changes probabilities, but brings nothing back.
    """
    return 5, 2, 3, 1, 2


def which_temperature(logits: Tensor, tokens: Tensor, candidates: Sequence[float]) -> float:
    """The temperature that makes what was written likeliest: maximum likelihood.

    The logits are divided *before* the softmax. It runs over the vocabulary and divides each row by its sum:
    without that, a number added to all logits of a row, which changes no probability, would decide.
    Logarithms are added, because a product of hundreds of probabilities is smaller than any float32. The
    more tokens, the surer the verdict.
    """
    likelihoods = []
    for temperature in candidates:
        said = (logits / temperature).log_softmax(-1)  # (seq, vocab)
        likelihoods.append(said.gather(-1, tokens[:, None]).sum().item())
    return candidates[likelihoods.index(max(likelihoods))]


def typical(logits: Tensor, share: float) -> Tensor:
    """Top-p with another order.

    Tokens are sorted by how far their surprise is from the entropy, on either side. A token stays while
    those *before* it cover less than the share, so the one that crosses the line is in. `scatter` takes
    each verdict from its place in the sorted list back to its token. All of it runs along the last axis, so
    that any number of rows can be filtered at once.
    """
    logp = logits.log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1, keepdim=True)  # (..., 1)
    order = (-logp - entropy).abs().argsort(-1)
    probabilities = logp.exp().gather(-1, order)
    before = probabilities.cumsum(-1) - probabilities
    keep = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before < share)
    return logits.masked_fill(~keep, -torch.inf)


def repair_cache(model: GPT, ids: Tensor, count: int) -> Tensor:
    """Everything is read exactly once.

    The loop read the whole text at every turn, behind all that the cache held already: the model then
    continued a text that nobody had written. Reading only the newest token is half of the repair. In the
    first turn the newest token is the prompt's last one, which the cache holds too, so the first prediction
    has to come from reading the prompt.
    """
    cache = KVCache(model.config, len(ids))
    logits = model(ids, cache=cache)[:, -1]  # (batch, vocab)
    for turn in range(count):
        token = logits.argmax(-1, keepdim=True)  # (batch, 1)
        ids = torch.cat([ids, token], dim=1)
        if turn + 1 < count:
            logits = model(token, cache=cache)[:, -1]
    return ids


def beam_search(
    log_probabilities: Callable[[Tensor], Tensor], ids: Sequence[int], count: int, b: int
) -> list[int]:
    """A beginning's score is the sum of its log-probabilities, the logarithm of how likely it is as a whole.

    The search starts from one row: b copies would have the same children, the same ones would win b times,
    and the beam would be greedy. `topk` over all children together lets one beginning have several
    survivors and another none; `index // vocab` finds the parent, whose row and score go on.

    On the model the wider beams find likelier texts than greedy, and emptier ones: after `KING LEAR.` it is
    *my lord* and again *my lord*.
    """
    rows, scores = torch.tensor([list(ids)]), torch.zeros(1)
    for _ in range(count):
        said = log_probabilities(rows)  # (beams, vocab)
        totals = (scores[:, None] + said).flatten()
        scores, index = totals.topk(min(b, len(totals)))
        parent, token = index // said.shape[-1], index % said.shape[-1]
        rows = torch.cat([rows[parent], token[:, None]], dim=1)
    return rows[0, len(ids) :].tolist()
