"""The optimizer of the training loop."""

from __future__ import annotations

import torch
from torch import nn

from labkit.config import TrainConfig
from labkit.training.muon import Combined, Muon

AnyOptimizer = torch.optim.Optimizer | Combined


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
