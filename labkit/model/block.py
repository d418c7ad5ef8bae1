"""The transformer block and its parts: normalisation and the feed-forward network."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from labkit.config import GPTConfig
from labkit.model.attention import CausalSelfAttention
from labkit.model.cache import LayerCache
from labkit.model.positions import RotaryPositions


def build_norm(config: GPTConfig) -> nn.Module:
    """Layer norm (Ba et al., 2016) or RMS norm (Zhang & Sennrich, 2019) over the features."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.d_model, eps=config.norm_eps)
    return nn.LayerNorm(config.d_model, eps=config.norm_eps, bias=config.bias)


class MLP(nn.Module):
    """Two linear layers with a non-linearity between, the same for every position.

    x: (..., d_model); returns the same shape. The hidden layer has config.ff_dim features; "swiglu"
    multiplies a second projection by SiLU of a gate.
    Source: Vaswani et al. (2017), equation 2; GELU: Hendrycks & Gimpel (2016); SwiGLU: Shazeer (2020).
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.up = nn.Linear(config.d_model, config.ff_dim, bias=config.bias)
        self.down = nn.Linear(config.ff_dim, config.d_model, bias=config.bias)
        self.gate = (
            nn.Linear(config.d_model, config.ff_dim, bias=config.bias)
            if config.activation == "swiglu"
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is not None:
            return self.down(F.silu(self.gate(x)) * self.up(x))
        approximate = "tanh" if self.activation == "gelu_tanh" else "none"
        return self.down(F.gelu(self.up(x), approximate=approximate))


class Block(nn.Module):
    """Attention, then feed-forward; each reads a normalised copy and adds to the residual stream.

    x: (batch, seq, d_model); returns the same shape.  rotary: as for `CausalSelfAttention`.
    Source: pre-norm order of Radford et al. (2019), section 2.3; analysed by Xiong et al. (2020).
    """

    def __init__(self, config: GPTConfig, rotary: RotaryPositions | None = None) -> None:
        super().__init__()
        self.norm1 = build_norm(config)
        self.attention = CausalSelfAttention(config, rotary)
        self.norm2 = build_norm(config)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        normed = self.norm1(x)  # attention of your own, without a cache, works too
        x = x + self.dropout(self.attention(normed) if cache is None else self.attention(normed, cache))
        return x + self.dropout(self.mlp(self.norm2(x)))
