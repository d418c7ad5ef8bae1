"""A plain trainer to compare with: a GPT and its training loop in the well-known nanoGPT manner.

Joined query, key and value, PyTorch's fused attention, tied output layer, AdamW with decay on matrices only,
cosine after a warmup, clipped gradients, batches built from a list of crops: what a careful person writes
first.  None of labkit's code, and none of its further tricks.
Source of the settings: Karpathy (2022), nanoGPT, `config/train_shakespeare_char.py` and its README for CPUs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    vocab_size: int
    context_length: int = 64
    d_model: int = 128
    n_layers: int = 4
    n_heads: int = 4
    tied: bool = True

    @classmethod
    def of(cls, config: Any) -> Shape:
        """The shape of a labkit configuration."""
        return cls(
            vocab_size=config.vocab_size,
            context_length=config.context_length,
            d_model=config.d_model,
            n_layers=config.n_layers,
            n_heads=config.n_heads,
            tied=config.tie_weights,
        )


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.n_heads = shape.n_heads
        self.qkv = nn.Linear(shape.d_model, 3 * shape.d_model)
        self.out = nn.Linear(shape.d_model, shape.d_model)

    def forward(self, x: Tensor) -> Tensor:
        batch, seq, d_model = x.shape
        heads = (batch, seq, self.n_heads, d_model // self.n_heads)
        q, k, v = (part.view(heads).transpose(1, 2) for part in self.qkv(x).split(d_model, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).contiguous().view(batch, seq, d_model))


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(shape.d_model), nn.LayerNorm(shape.d_model)
        self.attention = Attention(shape)
        self.up = nn.Linear(shape.d_model, 4 * shape.d_model)
        self.down = nn.Linear(4 * shape.d_model, shape.d_model)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ReferenceGPT(nn.Module):
    """ids, targets: (batch, seq); returns the mean cross-entropy of all logits at once."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.tokens = nn.Embedding(shape.vocab_size, shape.d_model)
        self.positions = nn.Embedding(shape.context_length, shape.d_model)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.n_layers))
        self.norm = nn.LayerNorm(shape.d_model)
        self.head = nn.Linear(shape.d_model, shape.vocab_size, bias=False)
        if shape.tied:
            self.head.weight = self.tokens.weight
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                last = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * shape.n_layers) if last else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


def list_built_batch(data: np.ndarray, context_length: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """Random crops, cut one by one; data may be a memory-mapped file of uint16."""
    starts = torch.randint(len(data) - context_length, (batch_size,)).tolist()
    inputs = [torch.from_numpy(data[i : i + context_length].astype(np.int64)) for i in starts]
    targets = [torch.from_numpy(data[i + 1 : i + 1 + context_length].astype(np.int64)) for i in starts]
    return torch.stack(inputs), torch.stack(targets)


def build_adamw(
    model: nn.Module, learning_rate: float, betas: tuple[float, float] = (0.9, 0.99), fused: bool = False
) -> torch.optim.AdamW:
    """nanoGPT takes the fused form on CUDA only."""
    parameters = [each for each in model.parameters() if each.requires_grad]
    groups = [
        {"params": [each for each in parameters if each.ndim >= 2], "weight_decay": 0.1},
        {"params": [each for each in parameters if each.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=fused)


def learning_rate(step: int, total: int, peak: float, warmup: int = 100) -> float:
    """Linear warmup, then a cosine down to a tenth."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = (step - warmup) / (total - warmup)
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, rate: float, batch: tuple[Tensor, Tensor]
) -> float:
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = model(*batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()
