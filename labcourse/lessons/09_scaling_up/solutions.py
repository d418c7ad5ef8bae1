"""Solutions of lesson 09's exercises."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from labkit.analysis.scaling import ScalingLaw


def training_days(flops_per_token: float, tokens: float, devices: int, peak: float, mfu: float) -> float:
    """Operations of the whole training over operations per second of all devices gives seconds.

    The MFU makes the second number smaller: that part of the peak is what the model gets. A day has
    86,400 seconds.
    """
    seconds = flops_per_token * tokens / (devices * peak * mfu)
    return seconds / 86_400


def attention_overtakes(d_model: int, d_ff: int, n_layers: int, n_heads: int) -> int:
    """A block has $4d^2$ weights in attention and $2\\,d\\,d_{ff}$ in its feed-forward part, 6 FLOP each.

    Scores and mixing cost $12\\,d\\,T$, since $h\\,d_h = d$. Both sides have a factor $6d$, and one of $L$:
    depth and heads fall out, and $T = 2d + d_{ff}$ is left, six times the width when $d_{ff} = 4d$.
    """
    return 2 * d_model + d_ff


def compute_bound_square(peak: float, bandwidth: float, size: int) -> int:
    """The product does $2n^3$ operations and moves three matrices, $3 n^2$ numbers of `size` bytes.

    Its intensity is $2n / (3 \\cdot \\text{size})$, which has to be at least $P / W$. Rounding up keeps
    it so.
    """
    return math.ceil(3 * size * peak / (2 * bandwidth))


def repair_mfu(
    step: Callable[[Tensor], None],
    batches: Sequence[Tensor],
    synchronize: Callable[[], None],
    clock: Callable[[], float],
    flops_per_token: float,
    peak: float,
) -> float:
    """Three things were wrong.

    The clock was read when all steps had been *ordered*; the device was still at work, and the MFU came out
    many times too high. The first step, which compiles and allocates, belongs before the clock starts, with a
    wait after it. And batches differ, so their tokens have to be added up.
    """
    first, *measured = batches
    step(first)
    synchronize()
    begin = clock()
    for batch in measured:
        step(batch)
    synchronize()
    seconds = clock() - begin
    tokens = sum(batch.numel() for batch in measured)
    return tokens * flops_per_token / seconds / peak


def same_loss_tokens(law: ScalingLaw, parameters: float, tokens: float, part: float) -> float:
    """What the smaller model loses in the term with $N$ it has to win back in the term with $D$.

    Take from the target loss what the new model cannot get below, $E + A/(pN)^\\alpha$. If nothing is
    left, no amount of text will do. Otherwise $B / D^\\beta$ must be what is left, so
    $D = (B / \\text{left})^{1/\\beta}$. For half of the largest of our models that is 2.4 times
    the text: 1.2 times the operations in training, and half of them for each character.
    """
    target = float(law.predict(parameters, tokens))
    left = target - law.E - law.A / (part * parameters) ** law.alpha
    return (law.B / left) ** (1 / law.beta) if left > 0 else math.inf


def chunk_rows(measure: Callable[[int], tuple[float, int]], sizes: Sequence[int], tries: int) -> int:
    """Take turns, so that a disturbance meets all sizes alike; keep the best, which had least of it.

    Then choose with a margin: a tenth of the time is less than one knows for sure, while bytes are known
    exactly.
    """
    seconds, held = dict.fromkeys(sizes, math.inf), dict.fromkeys(sizes, 0)
    for _ in range(tries):
        for rows in sizes:
            taken, held[rows] = measure(rows)
            seconds[rows] = min(seconds[rows], taken)
    fastest = min(seconds.values())
    return min((rows for rows in sizes if seconds[rows] <= 1.1 * fastest), key=held.__getitem__)
