"""Scaling laws: how the loss falls with the size of the model and with the text it reads."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_EXPONENTS = (0.05, 0.1, 0.2, 0.3, 0.45, 0.65, 0.9, 1.3)
"""Where the search for alpha and beta starts."""
_DELTA = 1e-3
"""Up to this difference of log(loss) Huber's loss is a square."""
_STEPS, _TOLERANCE = 3000, 1e-11
"""The search ends after so many steps, or when a hundred improve the objective by less than this part."""


@dataclass(frozen=True)
class ScalingLaw:
    """loss = E + A / N**alpha + B / D**beta, in nats per token, for a model of N weights after D tokens.

    E is what no model of any size would learn; the other terms are what a finite model and finite text cost.
    Source: Hoffmann et al. (2022), equation 2.
    """

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def predict(self, parameters: ArrayLike, tokens: ArrayLike) -> Floats:
        """The loss, of the shape that parameters and tokens have together."""
        n, d = np.asarray(parameters, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
        return np.asarray(self.E + self.A / n**self.alpha + self.B / d**self.beta)

    @property
    def share(self) -> float:
        """beta / (alpha + beta): the best N grows as the operations to this power, D as the rest of them."""
        return self.beta / (self.alpha + self.beta)

    def optimal(self, flops: ArrayLike) -> tuple[Floats, Floats]:
        """Parameters and tokens that reach the lowest loss with so many operations, 6 N D of them.

        N = G (flops / 6)**share and D = flops / (6 N), where
        G = (alpha A / (beta B))**(1 / (alpha + beta)).  Source: Hoffmann et al. (2022), equation 4.
        """
        balance = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        product = np.asarray(flops, dtype=np.float64) / 6
        parameters = np.asarray(balance * product**self.share)
        return parameters, product / parameters


PUBLISHED = {
    "Hoffmann et al. (2022)": ScalingLaw(E=1.69, A=406.4, alpha=0.34, B=410.7, beta=0.28),
    "Besiroglu et al. (2024)": ScalingLaw(E=1.82, A=482.01, alpha=0.3478, B=2085.43, beta=0.3658),
}
"""For subwords, and models of 70 million to 16 billion weights. The second fits data of the first again."""

KAPLAN = {"alpha": 0.076, "beta": 0.095, "share": 0.73}
"""Of a law without E, so alpha and beta are of another kind.  Source: Kaplan et al. (2020), section 1.2."""


def fit_scaling_law(parameters: ArrayLike, tokens: ArrayLike, losses: ArrayLike) -> ScalingLaw:
    """The law that fits finished runs best: the least sum of Huber's loss of the differences of log(loss).

    parameters, tokens, losses: one number per run; losses in nats per token.  Differences up to 1e-3 count
    squared, larger ones only in proportion, so that an outlier pulls less.  The search starts from many
    values of alpha and beta and the best result counts; the same data give the same law.
    Raises ValueError for fewer than 6 runs, 3 sizes or 3 numbers of tokens, and for values not above 0.
    Source: Hoffmann et al. (2022), section 3.3.
    """
    runs = _Runs(parameters, tokens, losses)
    # Half of the mean loss in E and a quarter in each of the other terms, with every pair of exponents.
    loss = runs.log_loss.mean()
    pairs = itertools.product(_EXPONENTS, repeat=2)
    starts = np.array([(loss - 1.4, alpha, loss - 1.4, beta, loss - 0.7) for alpha, beta in pairs])
    fitted, objectives = runs.minimise(starts, np.ones((len(starts), runs.count)))
    return runs.law(fitted[objectives.argmin()])


def bootstrap_scaling_law(
    parameters: ArrayLike, tokens: ArrayLike, losses: ArrayLike, *, resamples: int = 500, seed: int = 0
) -> list[ScalingLaw]:
    """The laws that fit as many runs drawn from the runs with replacement: how sure the law is.

    Each search starts from the law of all runs.  The rest: as for `fit_scaling_law`.
    Source: Efron (1979).
    """
    runs = _Runs(parameters, tokens, losses)
    start = runs.position(fit_scaling_law(parameters, tokens, losses))
    draws = np.random.default_rng(seed).multinomial(runs.count, [1 / runs.count] * runs.count, resamples)
    fitted, _ = runs.minimise(np.tile(start, (resamples, 1)), draws.astype(np.float64))
    return [runs.law(position) for position in fitted]


def intervals(laws: Sequence[ScalingLaw], level: float = 0.9) -> dict[str, tuple[float, float]]:
    """Between which two values the middle part of a bootstrap's laws lies, for each constant and share."""
    names = [*(field.name for field in fields(ScalingLaw)), "share"]
    edges = [(1 - level) / 2, (1 + level) / 2]
    found = {name: np.quantile([getattr(law, name) for law in laws], edges) for name in names}
    return {name: (float(low), float(high)) for name, (low, high) in found.items()}


class _Runs:
    """Runs and the search for their law.  A position is (a, alpha, b, beta, e), where
    log(loss) = log(exp(a - alpha log N) + exp(b - beta log D) + exp(e)), N and D over their mean logarithms.
    """

    def __init__(self, parameters: ArrayLike, tokens: ArrayLike, losses: ArrayLike) -> None:
        arrays = [np.asarray(each, dtype=np.float64) for each in (parameters, tokens, losses)]
        for name, each in zip(("parameters", "tokens", "losses"), arrays, strict=True):
            if each.ndim != 1 or each.shape != arrays[2].shape:
                raise ValueError(f"fit_scaling_law: {name} has shape {each.shape}; give one number per run.")
            if len(wrong := each[~((each > 0) & (each < np.inf))]):
                raise ValueError(f"fit_scaling_law: {name} holds {wrong[0]}; all must be finite and above 0.")
        self.count = len(arrays[2])
        sizes, budgets = len(np.unique(arrays[0])), len(np.unique(arrays[1]))
        if self.count < 6 or sizes < 3 or budgets < 3:
            raise ValueError(
                f"fit_scaling_law: {self.count} runs of {sizes} sizes and {budgets} numbers of tokens do not "
                "settle five constants. Give at least 6 runs, 3 sizes and 3 numbers of tokens."
            )
        log_n, log_d, self.log_loss = (np.log(each) for each in arrays)
        self.mean_n, self.mean_d = log_n.mean(), log_d.mean()
        self.n, self.d = log_n - self.mean_n, log_d - self.mean_d

    def law(self, position: Floats) -> ScalingLaw:
        a, alpha, b, beta, e = (float(each) for each in position)
        big_a, big_b = np.exp(a + alpha * self.mean_n), np.exp(b + beta * self.mean_d)
        return ScalingLaw(E=float(np.exp(e)), A=float(big_a), alpha=alpha, B=float(big_b), beta=beta)

    def position(self, law: ScalingLaw) -> Floats:
        a = np.log(law.A) - law.alpha * self.mean_n
        b = np.log(law.B) - law.beta * self.mean_d
        return np.array([a, law.alpha, b, law.beta, np.log(law.E)])

    def minimise(self, positions: Floats, weights: Floats) -> tuple[Floats, Floats]:
        """The best position found from each, and the objective there.

        positions: (searches, 5).  weights: (searches, runs), how often each run counts.
        Levenberg-Marquardt, each difference weighted so that its square has the slope of Huber's loss.
        """
        damping = np.full(len(positions), 1e-2)
        values, gradient, curvature = self._objective(positions, weights)
        positions, before = positions.copy(), values.copy()
        for step in range(_STEPS):
            diagonal = np.einsum("sii->si", curvature)
            damped = curvature + (damping[:, None] * diagonal + 1e-12)[..., None] * np.eye(5)
            moved = positions - np.linalg.solve(damped, gradient[..., None])[..., 0]
            there = self._objective(moved, weights)
            better = there[0] < values
            for old, new in zip((positions, values, gradient, curvature), (moved, *there), strict=True):
                old[better] = new[better]
            damping = np.clip(np.where(better, damping / 3, damping * 4), 1e-9, 1e9)
            if step % 100 == 99:
                if (before - values <= _TOLERANCE * before).all():
                    break
                before = values.copy()
        return positions, values

    def _objective(self, positions: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
        """The objective, (searches,), its gradient, (searches, 5), and the Gauss-Newton matrix."""
        a, alpha, b, beta, e = (each[:, None] for each in positions.T)
        terms = np.stack([a - alpha * self.n, b - beta * self.d, e + 0 * self.n])  # (3, searches, runs)
        predicted = np.logaddexp.reduce(terms)
        of_n, of_d, rest = np.exp(terms - predicted)
        slopes = np.stack([of_n, -of_n * self.n, of_d, -of_d * self.d, rest], -1)  # (searches, runs, 5)
        difference = predicted - self.log_loss
        size = np.abs(difference)
        huber = np.where(size <= _DELTA, size**2 / 2, _DELTA * (size - _DELTA / 2))
        pull = weights * np.minimum(1, _DELTA / np.maximum(size, _DELTA))
        gradient = np.einsum("sr,srp->sp", pull * difference, slopes)
        curvature = np.einsum("sr,srp,srq->spq", pull, slopes, slopes, optimize=True)  # (searches, 5, 5)
        return (weights * huber).sum(-1), gradient, curvature
