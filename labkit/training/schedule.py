"""The learning rate at each step."""

from __future__ import annotations

import math
from typing import Any

from labkit.config import TrainConfig


def scheduled_rate(config: TrainConfig, step: int, *, total_steps: int, warmup_steps: int) -> float:
    """The (AdamW) learning rate of a step by the configuration's schedule; a low of None is a tenth."""
    peak, low = config.learning_rate, config.min_learning_rate
    settings: dict[str, Any] = {
        "total_steps": total_steps,
        "learning_rate": peak,
        "min_learning_rate": peak / 10 if low is None else low,
        "warmup_steps": min(warmup_steps, total_steps),
    }
    if config.schedule == "cosine":
        return warmup_cosine(step, **settings)
    decay_steps = round(config.decay_fraction * total_steps) if config.schedule == "wsd" else 0
    return warmup_stable_decay(step, **settings, decay_steps=decay_steps)


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


def warmup_stable_decay(
    step: int,
    *,
    total_steps: int,
    learning_rate: float,
    min_learning_rate: float,
    warmup_steps: int,
    decay_steps: int,
) -> float:
    """Rise linearly to the peak, stay there, and fall linearly to the minimum over the last decay_steps.

    step: 0 to total_steps - 1; the minimum is reached at the last step.  decay_steps=0: constant after the
    warmup.  Where warmup and decay overlap, the lower of the two counts.
    Raises ValueError for a step outside the schedule.
    Source: Hu et al. (2024), MiniCPM, section 4; linear decay: Hägele et al. (2024), section 3.
    """
    if not 0 <= step < total_steps:
        raise ValueError(f"warmup_stable_decay: step={step} is outside 0 to {total_steps - 1}.")
    rising = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    falling = min(1.0, (total_steps - 1 - step) / decay_steps) if decay_steps else 1.0
    return min(learning_rate * rising, min_learning_rate + (learning_rate - min_learning_rate) * falling)
