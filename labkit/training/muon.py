"""Muon: momentum whose update is made orthogonal, for the matrices inside the blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

POLAR_EXPRESS = ((7.3625, -20.7434, 15.1606), (2.9175, -2.1824, 0.4755))
"""Coefficients (a, b, c) of each iteration s -> a s + b s^3 + c s^5 on the singular values s.

Each is the best polynomial for what the one before leaves of [0.03, 1]; two bring that to [0.62, 1.38].
"""


def orthogonalize(
    matrices: Tensor, coefficients: Sequence[tuple[float, float, float]] = POLAR_EXPRESS
) -> Tensor:
    """Move the singular values of each matrix towards 1, keeping its singular vectors.

    matrices: (batch, rows, columns), of any scale; returns the same shape.  Each iteration multiplies the
    matrix, laid so that rows <= columns, from the left by a polynomial of its Gram matrix.  So the factors,
    small and square, are multiplied with each other, and with the matrix only at the end.  The Gram matrix
    also bounds the singular values more closely than the matrix does, by the fourth root of the sum of their
    fourth powers, and the coefficients change from one iteration to the next: so two are enough.
    Computed in the matrices' own dtype: bfloat16, which others use here, is slow on most CPUs.
    Sources: Jordan et al. (2024), "Muon"; coefficients: Amsel et al. (2025), "The Polar Express", section 3;
    iteration: Higham (2008), section 8.3.
    """
    wide = matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT
    gram = wide @ wide.mT  # (batch, rows, rows)
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None].clamp(min=1e-30)
    gram = gram / trace  # so that the squares in the next line neither vanish nor overflow
    bound = torch.linalg.vector_norm(gram, dim=(-2, -1), keepdim=True).clamp(min=1e-6)
    gram = gram / bound
    product = (trace * bound).rsqrt()
    for number, (a, b, c) in enumerate(coefficients, start=1):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)  # a I + b gram + c gram gram
        product = factor * product if number == 1 else factor @ product
        if number < len(coefficients):
            gram = factor @ gram @ factor
    result = product @ wide
    return result if matrices.shape[-2] <= matrices.shape[-1] else result.mT


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, times sqrt(max(1, rows / columns)).

    params: matrices only; those of equal shape are handled in one batch.  lr: 0.02 suits most sizes.
    Raises ValueError for a parameter that is not a matrix.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 0.02, momentum: float = 0.95) -> None:
        params = list(params)
        if wrong := [tuple(each.shape) for each in params if each.ndim != 2]:
            raise ValueError(f"Muon: parameters of shape {wrong[0]} are not matrices; give them to AdamW.")
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            same_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    same_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in same_shape.items():
                gradients = [each.grad for each in parameters if each.grad is not None]
                momenta = [self._momentum(each) for each in parameters]
                torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
                ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
                update = orthogonalize(torch.stack(ahead))
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                torch._foreach_add_(parameters, list(update.unbind()), alpha=-group["lr"] * scale)

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        return state["momentum"]


class Combined:
    """Several optimizers that act as one."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all, in order."""
        return [group for each in self.optimizers for group in each.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for each in self.optimizers:
            each.zero_grad(set_to_none)

    def step(self) -> None:
        """Update every parameter."""
        for each in self.optimizers:
            each.step()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"optimizers": [each.state_dict() for each in self.optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        for each, saved in zip(self.optimizers, state["optimizers"], strict=True):
            each.load_state_dict(saved)
