"""Muon: momentum whose update is made orthogonal, for the matrices inside the blocks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration, chosen to pull small singular values up fast."""


def orthogonalize(matrices: Tensor, steps: int = 3) -> Tensor:
    """Move the singular values of each matrix towards 1, keeping its singular vectors.

    matrices: (batch, rows, columns), of any scale; returns the same shape.  steps: iterations; 5 bring all
    but the smallest singular values into about [0.7, 1.2], 3 train as well at these sizes and cost less.
    Computed in float32: bfloat16, which GPUs use here, is slow on most CPUs.
    Source: Jordan et al. (2024), "Muon"; iteration: Higham (2008), section 8.3.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    wide = x if x.shape[-2] <= x.shape[-1] else x.mT
    for _ in range(steps):
        gram = wide @ wide.mT
        # wide = a wide + (b gram + c gram gram) wide, each product and sum in one call
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide if x.shape[-2] <= x.shape[-1] else wide.mT


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
                gradients = torch.stack([each.grad for each in parameters if each.grad is not None])
                momenta = [self._momentum(each) for each in parameters]
                torch._foreach_lerp_(momenta, list(gradients.unbind()), 1 - group["momentum"])
                update = orthogonalize(gradients.lerp(torch.stack(momenta), group["momentum"]))
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
