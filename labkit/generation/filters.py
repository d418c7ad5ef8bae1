"""From logits to the distribution that a token is drawn from.

The order is temperature, then top-k, then top-p, as in most libraries: top-p counts probabilities of what
top-k has left, renormalised.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from labkit.config import SampleConfig


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Divide logits by the temperature, so that softmax sharpens (< 1) or flattens (> 1).

    logits: (..., vocab), any float dtype.  temperature: > 0; use greedy decoding for the limit 0.
    Returns the same shape.  Raises ValueError for a temperature that is not a finite number above 0.
    Source: Ackley, Hinton & Sejnowski (1985).
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(
            f"apply_temperature: temperature={temperature} must be a finite number above 0. "
            "SampleConfig(temperature=0) decodes greedily."
        )
    return logits / temperature


def top_k_filter(logits: Tensor, k: int) -> Tensor:
    """Set all but the k largest logits to -inf; ties with the k-th stay.

    logits: (..., vocab).  k: at least 1; a k above vocab keeps everything.  Returns the same shape.
    Raises ValueError for k < 1.  Source: Fan, Lewis & Dauphin (2018), section 5.4.
    """
    if k < 1:
        raise ValueError(f"top_k_filter: k={k} must be at least 1; k=1 always takes the likeliest token.")
    threshold = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < threshold, -torch.inf)


def top_p_filter(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of likeliest tokens whose probabilities sum to at least p; -inf for the rest.

    logits: (..., vocab).  p: in (0, 1].  Returns the same shape; the likeliest token always stays.
    Raises ValueError for p outside (0, 1].  Source: Holtzman et al. (2020), section 3.1.
    """
    if not 0 < p <= 1:
        raise ValueError(f"top_p_filter: p={p} must be in (0, 1]; p=1 keeps everything.")
    if p == 1:
        return logits
    ordered, order = logits.sort(descending=True, stable=True)
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities  # what the likelier tokens already cover
    removed = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= p)
    return logits.masked_fill(removed, -torch.inf)


def next_token_probabilities(logits: Tensor, config: SampleConfig) -> Tensor:
    """The distribution that the next token is drawn from: temperature, top-k, top-p, softmax.

    logits: (..., vocab).  Returns probabilities of the same shape; at temperature 0 all mass is on the
    likeliest token.
    """
    if config.temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.zeros_like(logits).scatter(-1, best, 1.0)
    logits = apply_temperature(logits, config.temperature)
    if config.top_k is not None:
        logits = top_k_filter(logits, config.top_k)
    if config.top_p is not None:
        logits = top_p_filter(logits, config.top_p)
    return logits.softmax(-1)
