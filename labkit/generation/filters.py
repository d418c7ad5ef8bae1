"""From logits to the distribution that a token is drawn from.

The order is repetition penalty, temperature, top-k, top-p, min-p, as in most libraries: each filter sees
what those before it have left, renormalised.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from labkit.config import SampleConfig


def apply_repetition_penalty(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make tokens that are in the text already less likely: positive logits / penalty, negative * penalty.

    logits: (..., vocab).  seen: bool of the same shape, True for tokens in the text (the prompt counts).
    penalty: above 0; 1 changes nothing, below 1 invites repetition.  Returns the same shape.
    Raises ValueError for a penalty that is not a finite number above 0.
    Source: Keskar et al. (2019), section 4.1.
    """
    if not (math.isfinite(penalty) and penalty > 0):
        raise ValueError(f"apply_repetition_penalty: penalty={penalty} must be a finite number above 0.")
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


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

    logits: (..., vocab).  k: from 1 to vocab.  Returns the same shape.
    Raises ValueError for another k.  Source: Fan, Lewis & Dauphin (2018), section 5.4.
    """
    _check_k(k, logits.shape[-1])
    threshold = logits.topk(k).values[..., -1:]
    return logits.masked_fill(logits < threshold, -torch.inf)


def _check_k(k: int, vocab: int) -> None:
    if not 1 <= k <= vocab or k % 1:
        raise ValueError(
            f"top-k: k={k} must be a whole number from 1, which always takes the likeliest token, to "
            f"{vocab}, the size of the vocabulary. Leave top_k out to keep every token."
        )


def top_p_filter(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of likeliest tokens whose probabilities sum to at least p; -inf for the rest.

    logits: (..., vocab).  p: in (0, 1].  Returns the same shape; the likeliest token always stays.  A sum
    that is below p by no more than a rounding error is enough; half precision is summed in float32.
    Raises ValueError for p outside (0, 1].  Source: Holtzman et al. (2020), section 3.1.
    """
    if not 0 < p <= 1:
        raise ValueError(f"top_p_filter: p={p} must be in (0, 1]; p=1 keeps everything.")
    if p == 1:
        return logits
    ordered, order = logits.sort(descending=True, stable=True)
    exact = torch.promote_types(logits.dtype, torch.float32)
    covered = ordered.softmax(-1, dtype=exact).cumsum(-1)
    enough = covered >= p - torch.finfo(exact).eps  # 0.5 + 0.3, rounded, is enough for 0.8
    removed = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order[..., 1:], enough[..., :-1])
    return logits.masked_fill(removed, -torch.inf)


def min_p_filter(logits: Tensor, p: float) -> Tensor:
    """Drop tokens whose probability is below p times that of the likeliest; -inf for them.

    logits: (..., vocab).  p: in [0, 1]; 0 keeps everything, 1 only the likeliest and its ties.
    Returns the same shape.  Raises ValueError for p outside [0, 1].  Source: Nguyen et al. (2024), section 3.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"min_p_filter: p={p} must be in [0, 1]; p=0 keeps everything.")
    if p == 0:
        return logits
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), -torch.inf)


def next_token_probabilities(logits: Tensor, config: SampleConfig, seen: Tensor | None = None) -> Tensor:
    """The distribution that the next token is drawn from: every filter of config in order, then softmax.

    logits: (..., vocab).  seen: bool of the same shape, what the repetition penalty lowers; needed only
    where config has one.  Returns probabilities of the same shape; at temperature 0 all mass is on the
    likeliest token.  Raises ValueError for top_k above vocab, a repetition penalty without seen, and logits
    that leave nothing to draw.
    """
    logits = _scaled(logits, config, seen)
    _check_finite(logits.amax(-1), config)
    if config.temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.zeros_like(logits).scatter(-1, best, 1.0)
    if config.top_k is not None:
        logits = top_k_filter(logits, config.top_k)
    return _after_top_k(logits, config)


def _scaled(logits: Tensor, config: SampleConfig, seen: Tensor | None) -> Tensor:
    if config.top_k is not None:
        _check_k(config.top_k, logits.shape[-1])
    if config.repetition_penalty != 1:
        if seen is None:
            raise ValueError(
                f"repetition_penalty={config.repetition_penalty} needs to know which tokens are in the text: "
                "give seen, True for those."
            )
        logits = apply_repetition_penalty(logits, seen, config.repetition_penalty)
    if config.temperature not in (0, 1):
        logits = apply_temperature(logits, config.temperature)
    return logits


def _check_finite(largest: Tensor, config: SampleConfig) -> None:
    if not math.isfinite(float(largest.abs().max())):
        raise ValueError(
            "The logits are not finite (the largest is NaN, inf or -inf), so there is nothing to draw from. "
            "Did the model's training diverge, does a filter of your own remove every token, or is the "
            f"setting too extreme (temperature={config.temperature}, "
            f"repetition_penalty={config.repetition_penalty})?"
        )


def _after_top_k(logits: Tensor, config: SampleConfig) -> Tensor:
    if config.top_p is not None:
        logits = top_p_filter(logits, config.top_p)
    if config.min_p is not None:
        logits = min_p_filter(logits, config.min_p)
    return logits.softmax(-1)


def draw(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """The token whose stretch of the cumulative distribution holds the uniform number.

    probabilities: (rows, vocab), or (vocab,) to draw from one distribution many times.  uniforms: (rows,) in
    [0, 1), float64.  Returns (rows,) indices; a token of probability 0 is never drawn.
    Source: inverse transform sampling, Devroye (1986), section III.2.
    """
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    if cumulative.ndim == 1:
        return torch.searchsorted(cumulative, uniforms * cumulative[-1], right=True)
    points = uniforms[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, points, right=True)[:, 0]


def next_tokens(logits: Tensor, config: SampleConfig, uniforms: Tensor, seen: Tensor | None = None) -> Tensor:
    """Draw one token per row from `next_token_probabilities`, (rows,).

    With top-k only what it leaves is worked on, in the same order: otherwise a vocabulary of 50,257 would
    cost more than a small model does.
    """
    logits = _scaled(logits, config, seen)
    if config.temperature == 0:
        _check_finite(logits.amax(-1), config)
        return logits.argmax(-1)
    if config.top_k is None:
        _check_finite(logits.amax(-1), config)
        return draw(_after_top_k(logits, config), uniforms)
    logits, ids = _shortlist(logits, config)
    drawn = draw(_after_top_k(logits, config), uniforms)
    return ids.gather(-1, drawn[:, None])[:, 0]


def _shortlist(logits: Tensor, config: SampleConfig) -> tuple[Tensor, Tensor]:
    """What top_k_filter leaves: logits and ids, ascending, (rows, k), or more where there are ties."""
    assert config.top_k is not None
    k, vocab = config.top_k, logits.shape[-1]
    values, ids = logits.topk(min(k + 1, vocab))
    _check_finite(values[:, 0], config)
    if k < vocab and any(kth == after for kth, after in values[:, k - 1 :].tolist()):
        ties = int((logits >= values[:, k - 1 : k]).sum(-1).max())
        ids = logits.topk(ties).indices.sort(-1).values
        kept = logits.gather(-1, ids)
        return kept.masked_fill(kept < values[:, k - 1 : k], -torch.inf), ids
    ids = ids[:, :k].sort(-1).values
    return logits.gather(-1, ids), ids
