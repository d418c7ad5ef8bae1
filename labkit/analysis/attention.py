"""What attention heads look at: queries, keys, weights, and scores that tell heads apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.analysis.hooks import module_inputs
from labkit.model import GPT


def queries_and_keys(model: GPT, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys of every layer and head, as their dot product sees them: turned by rotary positions.

    ids: (batch, seq).  Both results: (layers, batch, heads, seq, head_dim); where query heads share a key
    head, it is repeated for each.
    Raises ValueError for ids that are empty or that the model cannot read, TypeError for attention that is
    not made like `CausalSelfAttention`.
    """
    attentions: list[Any] = [block.attention for block in model.blocks]
    for layer, attention in enumerate(attentions):
        missing = [name for name in ("query", "key", "split_heads", "rotary") if not hasattr(attention, name)]
        if missing:
            raise TypeError(
                f"The {type(attention).__name__} of layer {layer} has no {' and no '.join(missing)}. Its "
                "queries and keys can be read if it has what CausalSelfAttention has under these names."
            )
    queries, keys = [], []
    for attention, x in zip(attentions, module_inputs(model, ids, attentions), strict=True):
        with torch.no_grad():
            q = attention.split_heads(attention.query(x))  # (batch, n_heads, seq, head_dim)
            k = attention.split_heads(attention.key(x))  # (batch, kv_heads, seq, head_dim)
            if attention.rotary is not None:
                q, k = attention.rotary(q, 0), attention.rotary(k, 0)
        queries.append(q)
        keys.append(k.repeat_interleave(q.shape[1] // k.shape[1], dim=1))  # (batch, n_heads, seq, head_dim)
    return torch.stack(queries), torch.stack(keys)


@dataclass(frozen=True, eq=False)
class AttentionSteps:
    """From dot products to attention weights, one step after the other; each (..., seq, seq), rows look."""

    raw: Tensor
    """Dot products of queries (rows) and keys (columns)."""
    scaled: Tensor
    """raw divided by the square root of head_dim."""
    masked: Tensor
    """scaled with -inf for keys that come after the query; the same as scaled without a mask."""
    weights: Tensor
    """The softmax of each row of masked: rows sum to 1."""


def attention_steps(queries: Tensor, keys: Tensor, *, causal: bool = True) -> AttentionSteps:
    """The steps of softmax(q k^T / sqrt(head_dim) + causal mask), for queries and keys of the same tokens.

    queries, keys: (..., seq, head_dim); half precision is computed in float32.  causal=False leaves out the
    mask, to see what it hides.  Source: Vaswani et al. (2017), equation 1.
    """
    dtype = torch.promote_types(queries.dtype, torch.float32)
    raw = queries.to(dtype) @ keys.to(dtype).mT  # (..., seq, seq)
    scaled = raw / queries.shape[-1] ** 0.5
    future = torch.ones(raw.shape[-2:], dtype=torch.bool, device=raw.device).triu(1)
    masked = scaled.masked_fill(future, -math.inf) if causal else scaled
    return AttentionSteps(raw, scaled, masked, masked.softmax(dim=-1))


def attention_maps(model: GPT, ids: Tensor, *, causal: bool = True) -> Tensor:
    """The attention weights of every layer and head, (layers, batch, heads, seq, seq).

    weights[layer, row, head, t, j]: how much position t looks at position j.  They take
    layers * batch * heads * seq**2 numbers of memory.  causal=False: what the softmax would give in each
    layer if it saw the whole text; the layers' inputs stay those of the model.
    ids, and what is raised: as for `queries_and_keys`.
    """
    return attention_steps(*queries_and_keys(model, ids), causal=causal).weights


def head_scores(weights: Tensor, ids: Tensor) -> dict[str, Tensor]:
    """What kind of head each is: five numbers per layer and head, each (layers, heads).

    weights: (layers, batch, heads, seq, seq) as from `attention_maps`.  ids: the (batch, seq) they belong to.
    All are means over the batch and every position but the first, which has nothing to choose from:

    - entropy: in bits; 0 looks at one position, log2(t + 1) at all t + 1 alike.
    - distance: how far away it looks, in tokens.
    - first_token: weight on the first token, where many heads rest when they have nothing to fetch.
    - previous_token: weight on the position before.
    - induction: weight on the positions that follow an earlier occurrence of the same token, over those
      positions whose token has one at least two positions back; NaN where the text repeats nothing.

    Where few different tokens recur again and again, as letters do, any head finds one that followed: judge
    induction on `repeated_ids`.  Source: Elhage et al. (2021); Olsson et al. (2022).
    Raises ValueError for fewer than two tokens, and for ids that do not belong to the weights.
    """
    if weights.ndim != 5 or ids.shape != (weights.shape[1], weights.shape[3]):
        raise ValueError(
            f"head_scores: weights {tuple(weights.shape)} and ids {tuple(ids.shape)} do not belong together; "
            "expected (layers, batch, heads, seq, seq) and (batch, seq)."
        )
    seq = ids.shape[1]
    if seq < 2:
        raise ValueError(f"head_scores: {seq} token leaves nothing to choose. Give at least two.")
    later = weights[..., 1:, :]  # (layers, batch, heads, seq - 1, seq)
    position = torch.arange(seq, device=weights.device)
    away = (position[1:, None] - position).abs().to(weights.dtype)  # (seq - 1, seq)
    same = ids[:, :, None] == ids[:, None, :]  # (batch, seq, seq)
    followed = F.pad(same[..., :-1], (1, 0)).tril(-1).to(weights)  # (batch, seq, seq)
    repeats = followed.any(-1).sum()
    return {
        "entropy": torch.special.entr(later).sum(-1).mean((1, 3)) / math.log(2),
        "distance": (later * away).sum(-1).mean((1, 3)),
        "first_token": later[..., 0].mean((1, 3)),
        "previous_token": weights.diagonal(-1, -2, -1).mean((1, 3)),
        "induction": torch.einsum("lbhtj,btj->lh", weights, followed) / repeats,
    }


def repeated_ids(vocab_size: int, length: int, *, batch: int = 1, seed: int) -> Tensor:
    """Random different tokens, and then the same once more: (batch, 2 * length), a test for induction.

    Nothing in the first half says what comes next; in the second, whoever looks up what followed last time
    knows.  Source: Olsson et al. (2022).
    Raises ValueError when the vocabulary has fewer than length tokens.
    """
    if not 1 <= length <= vocab_size:
        raise ValueError(f"repeated_ids: length={length} must be from 1 to vocab_size={vocab_size}.")
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randperm(vocab_size, generator=generator)[:length] for _ in range(batch)]
    return torch.stack(rows).repeat(1, 2)
