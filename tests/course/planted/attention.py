"""Wrong answers to lesson 02's exercises."""

from __future__ import annotations

import torch
from torch import Tensor

from planted import planted


@planted("window_mask", "True means blocked here")
def says_what_is_visible(seq: int, window: int) -> Tensor:
    everything = torch.ones(seq, seq, dtype=torch.bool)
    return everything.tril() & everything.triu(1 - window)


@planted("window_mask", "too far back is not blocked")
def forgets_the_far_past(seq: int, window: int) -> Tensor:
    return torch.ones(seq, seq, dtype=torch.bool).triu(1)


@planted("window_mask", "position 4, which comes later")
def forgets_the_future(seq: int, window: int) -> Tensor:
    return torch.ones(seq, seq, dtype=torch.bool).tril(-window)


@planted("window_mask", "itself counts as one")
def window_without_itself(seq: int, window: int) -> Tensor:
    everything = torch.ones(seq, seq, dtype=torch.bool)
    return everything.triu(1) | everything.tril(-window - 1)


@planted("repair_attention", "by which root")
def all_but_the_scale(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, n_heads, seq, head_dim = q.shape
    scores = q @ k.mT / (n_heads * head_dim) ** 0.5
    blocked = torch.ones(seq, seq, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(blocked, -torch.inf).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).reshape(batch, seq, n_heads * head_dim)
