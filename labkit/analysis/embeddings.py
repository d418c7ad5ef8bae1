"""Which tokens a model holds for alike: neighbours, and a map in two dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.model import GPT


def _table(embedding: GPT | Tensor) -> Tensor:
    weight = embedding.token_embedding.weight if isinstance(embedding, GPT) else embedding
    if weight.ndim != 2 or len(weight) == 0:
        raise ValueError(f"An embedding is a matrix (tokens, d_model); this one is {tuple(weight.shape)}.")
    return weight.detach().cpu().double()


def nearest_tokens(embedding: GPT | Tensor, token_id: int, k: int = 10) -> list[tuple[int, float]]:
    """The k tokens whose embeddings point most nearly in the same direction, and the cosine of each.

    embedding: a model, or a matrix (tokens, d_model).  The token itself is left out; equal cosines are in
    order of id.
    Raises ValueError for a token_id outside the embedding, or k below 1.
    """
    table = _table(embedding)
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
    """Embeddings seen from the side from which they are spread the widest."""

    points: list[Tensor]
    """Of each embedding, (tokens, 2)."""
    shares: Tensor
    """Of each embedding, how much of its variance lies along the two axes, (embeddings, 2)."""
    axes: Tensor
    """The two directions, (2, d_model), of length 1; the largest entry of each is positive."""


def embedding_map(*embeddings: GPT | Tensor) -> EmbeddingMap:
    """The principal components of embeddings, on common axes, such as before and after training.

    embeddings: models, or matrices (tokens, d_model) with the same d_model.  The axes are those along which
    all tokens of all embeddings together have the most variance.
    Raises ValueError for no embedding, for different d_model, or fewer than two tokens or features.
    Source: Pearson (1901); Hotelling (1933).
    """
    tables = [_table(embedding) for embedding in embeddings]
    shapes = [tuple(table.shape) for table in tables]
    if len({d_model for _, d_model in shapes}) != 1 or sum(n for n, _ in shapes) < 2 or shapes[0][1] < 2:
        raise ValueError(
            f"embedding_map: embeddings of shapes {shapes}. Give at least one, with the same d_model, and "
            "at least two tokens and two features."
        )
    together = torch.cat(tables)
    centre = together.mean(0)
    axes = torch.linalg.svd(together - centre, full_matrices=False).Vh[:2]  # (2, d_model)
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    axes = axes * largest.sign()
    points = [(table - centre) @ axes.T for table in tables]
    spread = [table.var(0, correction=0).sum() for table in tables]
    shares = [p.var(0, correction=0) / total for p, total in zip(points, spread, strict=True)]
    return EmbeddingMap(points, torch.stack(shares), axes)
