"""Looking into a model: attention weights, kinds of heads, the logit lens, similar tokens."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.analysis.evaluate import entropy
from labkit.model import GPT, evaluating


def module_inputs(model: GPT, ids: Tensor, modules: Iterable[nn.Module]) -> list[Tensor]:
    """The input of each of these modules while the model reads ids, in the order of the calls.

    ids: (batch, seq).  Read in evaluation mode and without gradients; the model stays as it was. Calls from
    other threads, which may be training the model, are not recorded.
    Raises ValueError for ids that are empty or that the model cannot read.
    """
    if ids.numel() == 0:
        raise ValueError(f"ids of shape {tuple(ids.shape)} hold no tokens. Give a text of at least one.")
    inputs: list[Tensor] = []
    thread = threading.get_ident()

    def record(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if threading.get_ident() == thread:
            inputs.append(arguments[0])

    with ExitStack() as hooks, evaluating(model), torch.no_grad():
        for module in modules:
            hooks.enter_context(module.register_forward_pre_hook(record))
        model.hidden(ids)
    return inputs


def queries_and_keys(model: GPT, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys of every layer and head, after rotary positions: their dot products are the scores.

    ids: (batch, seq).  Both results: (layers, batch, heads, seq, head_dim); where query heads share a key
    head, it is repeated for each.
    Raises ValueError for ids that are empty or that the model cannot read, TypeError for attention that
    lacks a part of `CausalSelfAttention` that is read here.
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
    """From dot products to attention weights; each (..., seq, seq), a row per query, a column per key."""

    raw: Tensor
    """Dot products of queries and keys."""
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

    weights[layer, row, head, t, j]: how much position t attends to position j.  They take
    layers * batch * heads * seq**2 numbers of memory.  causal=False: each layer's softmax over the whole
    text; the inputs of the layers stay those of the model.
    ids, and what is raised: as for `queries_and_keys`.
    """
    return attention_steps(*queries_and_keys(model, ids), causal=causal).weights


def head_scores(weights: Tensor, ids: Tensor) -> dict[str, Tensor]:
    """What kind of head each is: five numbers per layer and head, each (layers, heads).

    weights: (layers, batch, heads, seq, seq) as from `attention_maps`.  ids: the (batch, seq) they belong to.
    All are means over the batch and every position but the first, which can attend only to itself:

    - entropy: in bits; 0 for all weight on one position, log2(t + 1) for equal weights on all t + 1.
    - distance: mean distance to the positions attended to, in tokens.
    - first_token: weight on the first token, on which many heads rest when they find nothing.
    - previous_token: weight on the position before.
    - induction: weight on the positions that follow an earlier occurrence of the same token, over those
      positions whose token has one at least two positions back; NaN where the text repeats nothing.

    Where few different tokens recur often, as letters do, every head puts weight on one that followed: judge
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
    distance = (position[1:, None] - position).abs().to(weights.dtype)  # (seq - 1, seq)
    same = ids[:, :, None] == ids[:, None, :]  # (batch, seq, seq)
    followed = F.pad(same[..., :-1], (1, 0)).tril(-1).to(weights)  # (batch, seq, seq)
    repeats = followed.any(-1).sum()
    return {
        "entropy": entropy(later).mean((1, 3)) / math.log(2),
        "distance": (later * distance).sum(-1).mean((1, 3)),
        "first_token": later[..., 0].mean((1, 3)),
        "previous_token": weights.diagonal(-1, -2, -1).mean((1, 3)),
        "induction": torch.einsum("lbhtj,btj->lh", weights, followed) / repeats,
    }


def repeated_ids(vocab_size: int, length: int, *, batch: int = 1, seed: int) -> Tensor:
    """Random different tokens, then the same once more: (batch, 2 * length), a test for induction.

    Nothing predicts a token of the first half; one of the second is what followed its predecessor before.
    Source: Olsson et al. (2022).  Raises ValueError when the vocabulary has fewer than length tokens.
    """
    if not 1 <= length <= vocab_size:
        raise ValueError(f"repeated_ids: length={length} must be from 1 to vocab_size={vocab_size}.")
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randperm(vocab_size, generator=generator)[:length] for _ in range(batch)]
    return torch.stack(rows).repeat(1, 2)


def logit_lens(model: GPT, ids: Tensor) -> Tensor:
    """Logits read from the residual stream before the first block and after each, by the last norm and head.

    ids: (batch, seq).  Returns (layers + 1, batch, seq, vocab): entry 0 reads embeddings only, the last is
    the model's output.  With a large vocabulary that is a lot of memory; give few tokens then.
    The blocks were not trained to be read in the middle: what the lens does not show may be there in another
    form.  Source: nostalgebraist (2020), "interpreting GPT: the logit lens".
    Raises ValueError for ids that are empty or that the model cannot read.
    """
    streams = module_inputs(model, ids, [*model.blocks, model.norm])  # layers + 1 of (batch, seq, d_model)
    with torch.no_grad():
        return torch.stack([model.head(model.norm(stream)) for stream in streams])


def _embedding(embedding: GPT | Tensor) -> Tensor:
    weight = embedding.token_embedding.weight if isinstance(embedding, GPT) else embedding
    if weight.ndim != 2 or len(weight) == 0:
        raise ValueError(f"An embedding is a matrix (tokens, d_model); this one is {tuple(weight.shape)}.")
    return weight.detach().cpu().double()


def nearest_tokens(embedding: GPT | Tensor, token_id: int, k: int = 10) -> list[tuple[int, float]]:
    """The k other tokens whose embeddings have the largest cosine with this token's, and the cosines.

    embedding: a model, or a matrix (tokens, d_model).  Equal cosines are in order of id.
    Raises ValueError for a token_id outside the embedding, or k below 1.
    """
    table = _embedding(embedding)
    if not 0 <= token_id < len(table) or k < 1:
        raise ValueError(
            f"nearest_tokens: token_id={token_id} must be from 0 to {len(table) - 1}, and k={k} at least 1."
        )
    directions = F.normalize(table, dim=1)
    cosines = directions @ directions[token_id]  # (tokens,)
    order = cosines.sort(descending=True, stable=True).indices.tolist()
    return [(token, float(cosines[token])) for token in order if token != token_id][:k]


@dataclass(frozen=True, eq=False)
class EmbeddingMap:
    """Embeddings on the two axes along which they vary most."""

    points: list[Tensor]
    """Of each embedding, (tokens, 2)."""
    shares: Tensor
    """Share of each embedding's variance along the two axes, (embeddings, 2)."""


def embedding_map(*embeddings: GPT | Tensor) -> EmbeddingMap:
    """The first two principal components of embeddings, on common axes, such as before and after training.

    embeddings: models, or matrices (tokens, d_model) with the same d_model.  The axes are those along which
    all tokens of all embeddings together have the most variance; the largest entry of each is positive.
    Raises ValueError for no embedding, for different d_model, or fewer than two tokens or features.
    Source: Pearson (1901); Hotelling (1933).
    """
    tables = [_embedding(embedding) for embedding in embeddings]
    shapes = [tuple(table.shape) for table in tables]
    if len({d_model for _, d_model in shapes}) != 1 or sum(n for n, _ in shapes) < 2 or shapes[0][1] < 2:
        raise ValueError(
            f"embedding_map: embeddings of shapes {shapes}. Give at least one, with the same d_model, and "
            "at least two tokens and two features."
        )
    together = torch.cat(tables)
    centre = together.mean(0)
    axes = torch.linalg.svd(together - centre, full_matrices=False).Vh[:2]  # (2, d_model)
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    points = [(table - centre) @ axes.T for table in tables]
    spread = [table.var(0, correction=0).sum() for table in tables]
    shares = [p.var(0, correction=0) / total for p, total in zip(points, spread, strict=True)]
    return EmbeddingMap(points, torch.stack(shares))
