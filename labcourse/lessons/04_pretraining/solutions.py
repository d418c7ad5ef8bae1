"""Solutions of lesson 04's exercises."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def tokenizer_winner(trained: Mapping[str, tuple[float, float]]) -> tuple[str, float]:
    """Loss per token divided by bytes per token is loss per byte, whatever a token is.

    Dividing by $\\ln 2$ turns nats into bits. The losses per token, and so the perplexities, cannot be
    compared: whoever predicts 2.94 bytes at once has more to get wrong than whoever predicts one, and
    therefore wavers among more possibilities while knowing the text better.
    """
    bits = {name: loss / math.log(2) / size for name, (loss, size) in trained.items()}
    winner = min(bits, key=lambda name: bits[name])
    return winner, bits[winner]


def same_training() -> str:
    """Steps, crops and dropout follow from the seed and the number of the step, and from nothing else.

    So what does not train may come at any time: evaluations (A) keep no gradient, samples (C) draw from a
    generator of their own, and a stranger's random numbers (E) do not reach a step, whose generator is
    seeded anew. Twice as many steps (B) stretch the cosine: from the first steps on the rates are others.
    Two passes (D) add up to the same gradient on paper; but each pass draws its own dropout, and sums in
    another order are rounded differently.
    """
    return "ACE"


def accumulated_gradient(model: nn.Module, inputs: Tensor, targets: Tensor, size: int, clip: float) -> float:
    """Three lines were wrong.

    `zero_grad` comes once, before the first part, or only the last part is left. Each part's loss is a mean
    over that part, so it counts by its share of the batch: with parts of 3, 3 and 1 that is not one third
    each. And one clips the gradient of the step when it is complete; clipped parts add up to another
    direction. Weighted like that, the losses add up to the loss of the whole batch, too.
    """
    total = 0.0
    model.zero_grad()
    for x, y in zip(inputs.split(size), targets.split(size), strict=True):
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten()) * len(x) / len(inputs)
        loss.backward()
        total += loss.item()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    return total


def optimizer_numbers(folder: Path) -> int:
    """Dictionaries lie in lists, which lie in dictionaries. What is opened joins the list of what is left.

    AdamW keeps `exp_avg` and `exp_avg_sq`, each as large as its parameter, so two numbers for each. Muon
    keeps one average, `momentum`, and in this lesson's run it serves the matrices inside the blocks. Those
    matrices are what is missing from twice the number of parameters.
    """
    count, left = 0, [torch.load(folder / "state.pt", weights_only=True)["optimizer"]]
    while left:
        part = left.pop()
        if isinstance(part, Tensor):
            count += part.numel()
        elif isinstance(part, dict | list):
            left += part.values() if isinstance(part, dict) else part
    return count


def early_stopping(history: Sequence[tuple[int, float, float]], patience: int) -> tuple[int, int]:
    """Two things are kept: where the held-out loss was lowest, and how many evaluations ago that was.

    The training loss takes no part: it falls whether the model learns or memorises. A new best sets the count
    back to zero, so single bad evaluations, which are noise, stop nothing. What comes after the stop is never
    looked at, since in a real training it does not exist.

    In this lesson's run the held-out loss turns only once, at step 50. So with patience 1, 3 and 5 training
    stops at steps 60, 80 and 100, and keeps the same weights.
    """
    best_step, best, bad = 0, math.inf, 0
    for step, _, held_out in history:
        if held_out < best:
            best_step, best, bad = step, held_out, 0
        else:
            bad += 1
        if bad == patience:
            break
    return best_step, step
