"""How good a model is on text it has not seen, and how varied the text it writes is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.model import GPT, evaluating
from labkit.model.loss import CHUNK


def evaluate_loss(model: GPT, inputs: Tensor, targets: Tensor, *, batch_size: int = 64) -> float:
    """Mean cross-entropy in nats per token; targets of -100 do not count.

    inputs, targets: (windows, seq).  Dropout is off, no generator is touched, and the model's mode is
    restored.  Raises ValueError when there is no target to predict.
    """
    if len(inputs) == 0 or not bool((targets != -100).any()):
        raise ValueError("evaluate_loss: there is no target to predict; give at least one window of text.")
    total, count = summed_loss(model, inputs, targets, batch_size=batch_size)
    return total / count


@torch.no_grad()
def summed_loss(model: GPT, inputs: Tensor, targets: Tensor, *, batch_size: int = 64) -> tuple[float, int]:
    """Summed cross-entropy in nats, and how many targets it is the sum of; else as `evaluate_loss`."""
    device = model.token_embedding.weight.device
    total, count = 0.0, 0
    with evaluating(model):
        for some_inputs, some_targets in zip(
            inputs.split(batch_size), targets.split(batch_size), strict=True
        ):
            loss = model.loss(some_inputs.to(device), some_targets.to(device), reduction="sum")
            total += loss.item()
            count += int((some_targets != -100).sum())
    return total, count


def token_losses(model: GPT, ids: Tensor) -> Tensor:
    """Nats of each token after the first: how surprised the model is by it, given those before it.

    ids: (batch, seq), seq from 2 to context_length + 1.  Returns (batch, seq - 1), of which column t is about
    ids[:, t + 1]; on the model's device.  Dropout is off, no generator is touched, the model's mode is
    restored, and of a large vocabulary only some logits are held at once.
    Raises ValueError for ids that the model cannot read, and for sequences of one token.
    """
    if ids.ndim == 2 and ids.shape[1] < 2:
        raise ValueError(
            f"token_losses: ids have shape {tuple(ids.shape)}; the first token is not predicted, so "
            "sequences of two tokens at least are needed."
        )
    return _last_losses(model, ids, ids.shape[-1] - 1)


@torch.no_grad()
def _last_losses(model: GPT, ids: Tensor, count: int) -> Tensor:
    """Nats of the last `count` tokens of each row, (batch, count); else as `token_losses`."""
    inputs, targets = ids[..., :-1], ids[..., 1:]
    model.check_ids(inputs)
    model.check_ids(targets)
    weight = model.token_embedding.weight
    inputs, targets = inputs.to(weight.device), targets[:, -count:].to(weight.device)
    with evaluating(model):
        if model.forward_is_changed:
            return _nats(model(inputs)[:, -count:].flatten(0, 1), targets.flatten()).view_as(targets)
        hidden = model.hidden(inputs)[:, -count:].flatten(0, 1)  # (batch * count, d_model)
        rows = max(1, CHUNK.get(weight.device.type, CHUNK["cpu"]) // model.config.vocab_size)
        parts = zip(hidden.split(rows), targets.flatten().split(rows), strict=True)
        return torch.cat([_nats(model.head(part), wanted) for part, wanted in parts]).view_as(targets)


def _nats(logits: Tensor, targets: Tensor) -> Tensor:
    """-log of what (tokens, vocab) logits give (tokens,) targets, in float32 at least."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, targets, reduction="none")


def perplexity(loss: float) -> float:
    """exp(loss): the number of equally likely tokens that would be as hard to guess.

    loss: mean cross-entropy in nats per token.  Perplexities of different tokenizers do not compare.
    Source: Jelinek et al. (1977).
    """
    return math.exp(loss) if loss < 700 else math.inf


def bits_per_byte(loss: float, tokens: int, n_bytes: int) -> float:
    """Bits needed per byte of text; compares models with different tokenizers.

    loss: mean nats per token over `tokens` tokens that spell `n_bytes` bytes of UTF-8.
    Raises ValueError for counts below 1.
    """
    if tokens < 1 or n_bytes < 1:
        raise ValueError(f"bits_per_byte: tokens={tokens} and n_bytes={n_bytes} must be at least 1.")
    return loss * tokens / n_bytes / math.log(2)


def entropy(probabilities: Tensor) -> Tensor:
    """Shannon entropy in nats over the last axis: 0 for a certain outcome, ln(n) for n equal ones."""
    return torch.special.entr(probabilities).sum(-1)


def distinct_n(items: Sequence[object], n: int) -> float:
    """Share of the n-grams of a sequence that are different from each other: 1 means no repetition.

    Raises ValueError when the sequence is shorter than n.  Source: Li et al. (2016), section 5.2.
    """
    if n < 1 or len(items) < n:
        raise ValueError(f"distinct_n: n={n} must be at least 1 and at most the {len(items)} items.")
    grams = [tuple(items[start : start + n]) for start in range(len(items) - n + 1)]
    return len(set(grams)) / len(grams)
