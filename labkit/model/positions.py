"""How a transformer learns the order of its tokens: learned, sinusoidal and rotary positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from labkit.config import GPTConfig


def _rows(table: Tensor, seq: int, start: int | Tensor) -> Tensor:
    """seq rows of the table from start on: (seq, features), or (batch, seq, features) where starts differ."""
    if isinstance(start, int):
        return table[start : start + seq]
    return table[start[:, None] + torch.arange(seq, device=table.device)]


def _counts(end: int, step: int = 1) -> Tensor:
    """0, step, 2 step, … below end.  On the CPU: for the meta device PyTorch would import its compiler."""
    return torch.arange(0, end, step, dtype=torch.float64, device="cpu")


def _by_default(table: Tensor) -> Tensor:
    return table.to(torch.get_default_device(), torch.get_default_dtype())


class LearnedPositions(nn.Module):
    """One trained vector per position, added to the token embeddings.

    seq: how many.  start: position of the first, or (batch,) positions where the rows of a batch differ.
    Returns (seq, d_model), or (batch, seq, d_model).
    Source: Gehring et al. (2017); used by GPT-2.
    """

    def __init__(self, context_length: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(context_length, d_model))
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, seq: int, start: int | Tensor = 0) -> Tensor:
        return _rows(self.weight, seq, start)


class SinusoidalPositions(nn.Module):
    """A fixed vector of sines and cosines per position, added to the token embeddings.

    Feature pair i of position p holds sin and cos of p / 10000**(2 i / d_model).
    seq, start and what is returned: as for `LearnedPositions`.
    Source: Vaswani et al. (2017), section 3.5.
    """

    def __init__(self, context_length: int, d_model: int) -> None:
        super().__init__()
        self.sizes = context_length, d_model
        self.compute_tables()

    def compute_tables(self) -> None:
        """Compute what no file holds; again where the module was made of shapes only, on the meta device."""
        context_length, d_model = self.sizes
        position, pair = _counts(context_length), _counts(d_model, 2)
        angles = torch.outer(position, torch.exp(-math.log(10000.0) * pair / d_model))
        table = angles.new_empty(context_length, d_model)
        table[:, 0::2] = angles.sin()
        table[:, 1::2] = angles.cos()[:, : d_model // 2]
        self.register_buffer("table", _by_default(table), persistent=False)
        self.table: Tensor

    def forward(self, seq: int, start: int | Tensor = 0) -> Tensor:
        return _rows(self.table, seq, start)


class RotaryPositions(nn.Module):
    """Turns each pair of query and key features by an angle that grows with the position.

    x: (batch, heads, seq, head_dim), head_dim even; returns the same shape. Feature i is paired with
    feature i + head_dim / 2 and turned by p * base**(-2 i / head_dim), so that the dot product of a query
    and a key depends only on the distance between them.
    start: position of the first, or (batch,) positions where the rows differ.
    Source: Su et al. (2021), equation 34, with the halves paired as in the Llama family.
    """

    def __init__(self, context_length: int, head_dim: int, base: float = 10000.0) -> None:
        super().__init__()
        self.sizes = context_length, head_dim, base
        self.compute_tables()

    def compute_tables(self) -> None:
        """As for `SinusoidalPositions`."""
        context_length, head_dim, base = self.sizes
        angles = torch.outer(_counts(context_length), base ** (-_counts(head_dim, 2) / head_dim))
        angles = torch.cat([angles, angles], dim=-1)  # (context_length, head_dim)
        self.register_buffer("cos", _by_default(angles.cos()), persistent=False)
        self.register_buffer("sin", _by_default(angles.sin()), persistent=False)
        self.cos: Tensor
        self.sin: Tensor

    def forward(self, x: Tensor, start: int | Tensor = 0) -> Tensor:
        cos, sin = (_rows(table, x.shape[-2], start) for table in (self.cos, self.sin))
        if cos.ndim == 3:
            cos, sin = cos[:, None], sin[:, None]  # (batch, 1, seq, head_dim): the same for every head
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat([-second, first], dim=-1)
        return x * cos + turned * sin


def build_rotary(config: GPTConfig) -> RotaryPositions | None:
    """The rotary positions of a model, if it has such."""
    if config.positions != "rotary":
        return None
    return RotaryPositions(config.context_length, config.head_dim, config.rope_base)
