"""Checks of lesson 02's exercises."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.course.check import Answer, expect


def window_mask(answer: Answer) -> str:
    mask = answer(7, 3)
    expect(isinstance(mask, Tensor) and mask.dtype == torch.bool, "The mask must be a tensor of bool.")
    expect(mask.shape == (7, 7), f"For 7 positions the mask has shape {tuple(mask.shape)}, not (7, 7).")
    sees = ~mask
    expect(
        sees.diagonal().all() or not sees.triu(1).any(),
        "Position 0 is blocked from itself. True means blocked here: is the mask inverted?",
    )
    expect(sees.diagonal().all(), "A position does not see itself: is one of the diagonals one step off?")
    expect(
        not sees.triu(1).any(),
        "Position 3 sees position 4, which comes later: is only one of the two triangles blocked?",
    )
    width = int(sees[-1].sum())
    expect(width < 7, "The last position sees everything before it: what lies too far back is not blocked.")
    expect(
        width == 3,
        f"With window=3 a position sees {width} positions, and itself counts as one: is a diagonal one step off?",
    )
    expect(not answer(4, 9).tril().any(), "A window longer than the text blocks something that came before.")
    return "With a window of w, n positions cost about n * w scores instead of n * n."


def repair_attention_stub(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, n_heads, seq, head_dim = q.shape
    scores = q @ k.mT / (n_heads * head_dim) ** 0.5
    blocked = torch.ones(seq, seq, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(blocked, 1e-10).softmax(dim=-1)
    return (weights @ v).reshape(batch, seq, n_heads * head_dim)


def repair_attention(answer: Answer) -> None:
    q, k, v = torch.randn(3, 2, 4, 7, 5)
    mixed = answer(q, k, v)
    expect(mixed.shape == (2, 7, 20), f"The output has shape {tuple(mixed.shape)}, not (2, 7, 4 * 5).")
    later = torch.cat([v[:, :, :4], torch.randn(2, 4, 3, 5)], dim=2)
    expect(
        not (answer(q, k, later) - mixed)[:, :4].any(),
        "Changing what comes later changes earlier outputs: the future leaks. What is exp of the number put in "
        "for blocked scores? And are features of several positions mixed?",
    )
    right = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    heads = mixed.unflatten(-1, (4, 5)).transpose(1, 2)
    expect(
        torch.allclose(heads, right, atol=1e-5),
        "Nobody sees the future now, but the weights are others: by which root are the scores divided?",
    )
