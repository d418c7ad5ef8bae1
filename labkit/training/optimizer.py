"""The optimizer of the training loop."""

from __future__ import annotations

import torch
from torch import nn

from labkit.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices (linear weights, embeddings) and leaves biases and norms alone.

    Frozen parameters are left out.  Raises ValueError when nothing is left to train, or for a parameter
    that is not contiguous: PyTorch's fused AdamW would update such a view wrongly without a word.
    Source: Loshchilov & Hutter (2019); which tensors to decay: Radford et al. (2018), section 4.1.
    """
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    if not trained:
        raise ValueError("build_optimizer: every parameter is frozen; nothing is left to train.")
    strided = [name for name, each in trained.items() if not each.is_contiguous()]
    if strided:
        raise ValueError(
            f"build_optimizer: {', '.join(strided)} are views with strides. Make them contiguous: "
            "parameter.data = parameter.data.contiguous()."
        )
    groups = [
        {"params": [p for p in trained.values() if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=config.betas,
        fused=True,
    )
