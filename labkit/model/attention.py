"""Causal multi-head self-attention."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from labkit.config import GPTConfig
from labkit.model.cache import LayerCache
from labkit.model.positions import RotaryPositions, build_rotary


class CausalSelfAttention(nn.Module):
    """Every position gathers values from itself and earlier positions, in several heads at once.

    x: (batch, seq, d_model); returns the same shape. With n_kv_heads below n_heads, groups of query heads
    share one key/value head.  rotary: tables that layers share; the layer's own when not given.
    Source: Vaswani et al. (2017), equation 1; grouped queries: Ainslie et al. (2023).
    """

    def __init__(self, config: GPTConfig, rotary: RotaryPositions | None = None) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.attention_dropout = config.attention_dropout
        kv_dim = config.kv_heads * config.head_dim
        self.grouped = config.kv_heads != config.n_heads
        self.query = nn.Linear(config.d_model, config.d_model, bias=config.qkv_bias)
        self.key = nn.Linear(config.d_model, kv_dim, bias=config.qkv_bias)
        self.value = nn.Linear(config.d_model, kv_dim, bias=config.qkv_bias)
        self.out = nn.Linear(config.d_model, config.d_model, bias=config.bias)
        self.rotary = rotary or build_rotary(config)

    def split_heads(self, x: Tensor) -> Tensor:
        """(batch, seq, heads * head_dim) to (batch, heads, seq, head_dim)."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        q = self.split_heads(self.query(x))  # (batch, n_heads, seq, head_dim)
        k = self.split_heads(self.key(x))  # (batch, kv_heads, seq, head_dim)
        v = self.split_heads(self.value(x))  # (batch, kv_heads, seq, head_dim)
        if self.rotary is not None:
            start = 0 if cache is None else cache.shared.positions
            q, k = self.rotary(q, start), self.rotary(k, start)
        mask, causal = None, True
        if cache is not None:
            mask = cache.shared.mask
            causal = cache.shared.length == 0 and mask is None
            k, v = cache.append(k, v)  # (batch, kv_heads, slots, head_dim)
        # softmax(q k^T / sqrt(head_dim) + causal mask) v, without holding the scores.
        dropout = self.attention_dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, enable_gqa=self.grouped
        )
        return self.out(mixed.transpose(1, 2).flatten(2))  # (batch, seq, d_model)
