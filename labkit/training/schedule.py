"""The learning rate at each step."""

from __future__ import annotations

import math


def warmup_cosine(
    step: int, *, total_steps: int, learning_rate: float, min_learning_rate: float, warmup_steps: int
) -> float:
    """Rise linearly to the peak over warmup_steps, then fall along half a cosine to the minimum.

    step: 0 to total_steps - 1.  The peak is used at step warmup_steps - 1 (step 0 without warmup) and the
    minimum at the last step.  Raises ValueError for a step outside the schedule.
    Source: warmup: Goyal et al. (2017), section 2.2; cosine: Loshchilov & Hutter (2017), equation 5.
    """
    if not 0 <= step < total_steps:
        raise ValueError(f"warmup_cosine: step={step} is outside 0 to {total_steps - 1}.")
    if step < warmup_steps:
        return learning_rate * (step + 1) / warmup_steps
    peak = max(warmup_steps - 1, 0)
    progress = (step - peak) / max(total_steps - 1 - peak, 1)
    return min_learning_rate + (learning_rate - min_learning_rate) * (1 + math.cos(math.pi * progress)) / 2
