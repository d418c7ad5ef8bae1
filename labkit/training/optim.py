"""The optimizer and its learning rate: AdamW, Muon for the matrices inside the blocks, the schedules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from labkit.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> AnyOptimizer:
    """AdamW, or Muon on the blocks' matrices with AdamW on the rest; frozen parameters are left out.

    AdamW decays matrices (linear weights, embeddings) and leaves biases and norms alone.  Every group has a
    key "peak": its learning rate when the schedule is at its height.  Parameters become contiguous.
    Raises ValueError when nothing is left to train.
    Source: Loshchilov & Hutter (2019); which tensors to decay: Radford et al. (2018), section 4.1.
    """
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    if not trained:
        raise ValueError("build_optimizer: every parameter is frozen; nothing is left to train.")
    for each in trained.values():
        # Loaded weights may be transposed views; PyTorch's fused AdamW updates those wrongly without a word.
        each.data = each.data.contiguous()
    muon: list[nn.Parameter] = []
    if config.optimizer == "muon":
        muon = [each for name, each in trained.items() if each.ndim == 2 and "blocks." in name]
    rest = [each for each in trained.values() if all(each is not other for other in muon)]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimizers: list[torch.optim.Optimizer] = [Muon(muon, lr=config.muon_learning_rate)] if muon else []
    if groups:
        adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
        optimizers.append(adamw)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers[0] if len(optimizers) == 1 else Combined(*optimizers)


def check_shapes(optimizer: AnyOptimizer) -> None:
    """Refuse moments of another shape than their parameter: a fused step would read past their end.

    Raises ValueError that names the shapes.
    """
    for each in optimizer.optimizers if isinstance(optimizer, Combined) else [optimizer]:
        for parameter, moments in each.state.items():
            for name, tensor in moments.items():
                if tensor.ndim and tensor.shape != parameter.shape:
                    raise ValueError(
                        f"optimizer state: {name} has shape {tuple(tensor.shape)}, its parameter "
                        f"{tuple(parameter.shape)}."
                    )


def freeze(model: nn.Module, prefixes: tuple[str, ...]) -> None:
    """Stop training the parameters whose names begin with a prefix.  Raises ValueError for one without."""
    for prefix in prefixes:
        named = [each for name, each in model.named_parameters() if name.startswith(prefix)]
        if not named:
            names = ", ".join(sorted({name.split(".")[0] for name, _ in model.named_parameters()}))
            raise ValueError(f"freeze: no parameter begins with {prefix!r}. They begin with {names}.")
        for parameter in named:
            parameter.requires_grad_(False)


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


AnyOptimizer = torch.optim.Optimizer | Combined


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
