"""Solutions of lesson 02's exercises."""

from __future__ import annotations

import torch
from torch import Tensor


def window_mask(seq: int, window: int) -> Tensor:
    """Blocked is what comes later, above the diagonal, and what lies `window` or more places back."""
    everything = torch.ones(seq, seq, dtype=torch.bool)
    return everything.triu(1) | everything.tril(-window)


def repair_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Three lines were wrong.

    The divisor is the root of head_dim: each head is a dot product of its own. A blocked score must become
    -inf, whose exponential is 0; the exponential of 1e-10 is 1. And the axis of heads must stand before
    head_dim when both are flattened, or the features of different positions are mixed.
    """
    batch, n_heads, seq, head_dim = q.shape
    scores = q @ k.mT / head_dim**0.5
    blocked = torch.ones(seq, seq, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(blocked, -torch.inf).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).reshape(batch, seq, n_heads * head_dim)
