"""What the heads of a model see in a text, ready to be drawn: all of them, one of them, a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from labkit.analysis import AttentionSteps, attention_steps, head_scores, queries_and_keys
from labkit.model import GPT
from labkit.text import Tokenizer
from labstudio.figures.base import heatmap, new_figure
from labstudio.visible import token_label, unhidden

LONGEST = 128
STEPS = {
    "raw": "Raw scores: q·k",
    "scaled": "Scaled: divided by √head_dim",
    "masked": "Masked: no later tokens",
    "weights": "Softmax: each row adds up to 1",
}


@dataclass(frozen=True, eq=False)
class Reading:
    """Some tokens as every head of every layer sees them, on the CPU."""

    queries: Tensor
    """(layers, heads, seq, head_dim)"""
    keys: Tensor
    """(layers, heads, seq, head_dim)"""
    ids: Tensor
    """(seq,); equal where the tokens are the same."""
    labels: list[str]
    """What to call each token; nothing in it hides."""
    unread: int = 0
    """Tokens before these that were left out."""

    def steps(self, *, causal: bool) -> AttentionSteps:
        """The steps of every layer and head, each (layers, heads, seq, seq)."""
        return attention_steps(self.queries, self.keys, causal=causal)


def read_text(model: GPT, tokenizer: Tokenizer, text: str) -> Reading:
    """What the heads see in the last tokens of a text: at most LONGEST, and no more than the context holds.

    Raises ValueError for an empty text, signs that the tokenizer does not know, numbers that are not finite
    and attention whose queries cannot be read.
    """
    if not text:
        raise ValueError("text='' is empty; type at least one character.")
    try:
        ids = tokenizer.encode(text)
    except ValueError as error:
        raise ValueError(f"text: {error}") from error
    read = ids[-min(LONGEST, model.config.context_length) :]
    batch = torch.tensor([read], device=model.token_embedding.weight.device)
    try:
        queries, keys = queries_and_keys(model, batch)  # (layers, 1, heads, seq, head_dim)
    except TypeError as error:
        raise ValueError(str(error)) from error
    labels = [token_label(tokenizer, token) for token in read]
    return _checked(queries[:, 0], keys[:, 0], batch[0], labels, unread=len(ids) - len(read))


def given_tokens(queries: Tensor, keys: Tensor, tokens: Sequence[str]) -> Reading:
    """Queries and keys of one's own, (heads, seq, head_dim) or (layers, heads, seq, head_dim).

    Raises ValueError for other shapes, numbers that are not finite, and tokens of another number.
    """
    for name, tensor in {"queries": queries, "keys": keys}.items():
        if tensor.ndim not in (3, 4) or tensor.numel() == 0:
            raise ValueError(
                f"{name} have shape {tuple(tensor.shape)}; expected (heads, seq, head_dim) or (layers, "
                "heads, seq, head_dim). Give one head as queries[None], keys[None]."
            )
    if queries.shape != keys.shape:
        raise ValueError(f"queries {tuple(queries.shape)} and keys {tuple(keys.shape)} differ in shape.")
    if not 1 <= len(tokens) == queries.shape[-2] <= LONGEST:
        raise ValueError(
            f"{len(tokens)} tokens for {queries.shape[-2]} positions: give one for each, {LONGEST} at most."
        )
    numbers = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    ids = torch.tensor([numbers[token] for token in tokens])
    return _checked(_layered(queries), _layered(keys), ids, [unhidden(token) for token in tokens])


def _layered(tensor: Tensor) -> Tensor:
    return tensor if tensor.ndim == 4 else tensor[None]  # (layers, heads, seq, head_dim)


def _checked(queries: Tensor, keys: Tensor, ids: Tensor, labels: list[str], unread: int = 0) -> Reading:
    queries, keys = (tensor.detach().float().cpu() for tensor in (queries, keys))
    if not (queries.isfinite().all() and keys.isfinite().all()):
        raise ValueError("The queries or keys are not finite: there is NaN or infinity among the weights.")
    return Reading(queries, keys, ids.cpu(), labels, unread)


def all_heads(reading: Reading, weights: Tensor) -> dict[str, Any]:
    """What the browser draws of all heads at once: labels, scores by name, and a byte for each weight.

    weights: (layers, heads, seq, seq) in [0, 1]; as bytes 0 to 255, row by row.  A score that is not defined
    for this text is None.
    """
    layers, heads, seq, _ = weights.shape
    scores = head_scores(weights[:, None], reading.ids[None]) if seq > 1 else {}
    return {
        "labels": reading.labels,
        "layers": layers,
        "heads": heads,
        "scores": {name.replace("_", " "): _plain(values) for name, values in scores.items()},
        "weights": (weights * 255).round().to(torch.uint8).numpy().tobytes(),
    }


def one_head(reading: Reading, steps: AttentionSteps, layer: int, head: int) -> dict[str, Any]:
    """What the browser draws of one head: float32 bytes of its four (seq, seq) matrices, in order."""
    matrices = torch.stack([getattr(steps, name)[layer, head] for name in STEPS])  # (4, seq, seq)
    head_dim = reading.queries.shape[-1]
    return {"layer": layer, "head": head, "head_dim": head_dim, "matrices": matrices.numpy().tobytes()}


def _plain(scores: Tensor) -> list[list[float | None]]:
    """(layers, heads) as JSON, which has no NaN."""
    return [[value if math.isfinite(value) else None for value in row] for row in scores.tolist()]


def attention_figure(steps: AttentionSteps, tokens: Sequence[str]) -> Figure:
    """The four steps of one head as heat maps with a name for each token; few tokens have their numbers too.

    steps: of one head, each (seq, seq).  Raises ValueError for another shape or another number of tokens.
    """
    if steps.raw.shape != (len(tokens), len(tokens)):
        raise ValueError(
            f"attention_figure: the steps are {tuple(steps.raw.shape)} for {len(tokens)} tokens; expected "
            "(seq, seq) of one head and as many tokens."
        )
    figure = new_figure(2, rows=2, width=9, height=7.5)
    for axes, (name, title) in zip(figure.axes[:4], STEPS.items(), strict=True):
        heatmap(axes, getattr(steps, name), rows=tokens, columns=tokens, numbers=len(tokens) <= 8)
        axes.set(title=title, xlabel="looks at (key)", ylabel="token (query)")
    return figure
