"""The parts of a transformer: positions, attention, feed-forward network and block."""

from __future__ import annotations

import inspect
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.config import GPTConfig
from labkit.model.cache import LayerCache


class LearnedPositions(nn.Module):
    """One trained vector per position, added to the token embeddings.

    seq: how many.  start: position of the first, or (batch,) positions where the rows of a batch differ.
    Returns (seq, d_model), or (batch, seq, d_model).  Raises ValueError for positions outside the context.
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
    Raises ValueError for as many starts as there are not rows, and for positions outside the context.
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
        check_starts(start, len(x))
        seq = x.shape[-2]
        cos, sin = _rows(self.cos, seq, start), _rows(self.sin, seq, start)
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


def check_starts(start: int | Tensor, batch: int) -> None:
    """Raise ValueError unless start is one position, or a tensor with one for each row of the batch."""
    if isinstance(start, Tensor) and start.shape != (batch,):
        raise ValueError(
            f"Positions: start has shape {tuple(start.shape)}; expected one position for each of the {batch} "
            "rows of the batch. For tokens that follow one another give the position of the first, a number."
        )


def _rows(table: Tensor, seq: int, start: int | Tensor) -> Tensor:
    """seq rows of the table from start on: (seq, features), or (batch, seq, features) where starts differ."""
    if isinstance(start, Tensor):
        return table[start[:, None] if seq == 1 else start[:, None] + torch.arange(seq, device=table.device)]
    if not 0 <= start <= len(table) - seq:
        raise ValueError(
            f"Positions {start} to {start + seq - 1} do not fit context_length={len(table)}; the first is 0."
        )
    return table.narrow(0, start, seq)


def _counts(end: int, step: int = 1) -> Tensor:
    """0, step, 2 step, … below end.  On the CPU: for the meta device PyTorch would import its compiler."""
    return torch.arange(0, end, step, dtype=torch.float64, device="cpu")


def _by_default(table: Tensor) -> Tensor:
    return table.to(torch.get_default_device(), torch.get_default_dtype())


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
        batch, seq, _ = x.shape
        return x.reshape(batch, seq, -1, self.head_dim).transpose(1, 2)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        q = self.split_heads(self.query(x))  # (batch, n_heads, seq, head_dim)
        k = self.split_heads(self.key(x))  # (batch, kv_heads, seq, head_dim)
        v = self.split_heads(self.value(x))  # (batch, kv_heads, seq, head_dim)
        if self.rotary is not None:
            start = 0 if cache is None else cache.shared.positions
            q, k = self.rotary(q, start), self.rotary(k, start)
        mask, causal = None, True
        if cache is not None:
            mask, causal = cache.shared.mask, cache.shared.causal
            k, v = cache.append(k, v)  # (batch, kv_heads, slots, head_dim)
        # softmax(q k^T / sqrt(head_dim) + causal mask) v, without holding the scores.
        dropout = self.attention_dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, enable_gqa=self.grouped
        )
        return self.out(mixed.transpose(1, 2).flatten(2))  # (batch, seq, d_model)


def build_norm(config: GPTConfig) -> nn.Module:
    """Layer norm (Ba et al., 2016) or RMS norm (Zhang & Sennrich, 2019) over the features."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.d_model, eps=config.norm_eps)
    return nn.LayerNorm(config.d_model, eps=config.norm_eps, bias=config.bias)


class Dropout(nn.Dropout):
    """Zero a share of the numbers while training; while evaluating, x itself, at no cost."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else x


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
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        normed = self.norm1(x)  # attention of your own, without a cache, works too
        x = x + self.dropout(self.attention(normed) if cache is None else self.attention(normed, cache=cache))
        return x + self.dropout(self.mlp(self.norm2(x)))


def is_unchanged(module: nn.Module) -> bool:
    """Whether a call of this module runs what its class was written with: no hook, no replaced method."""
    kind = type(module)
    methods = {name: method for name, method in vars(kind).items() if inspect.isfunction(method)}
    as_written = all(
        (method.__module__, method.__qualname__) == (kind.__module__, f"{kind.__qualname__}.{name}")
        for name, method in methods.items()
    )
    hooked = module._forward_hooks or module._forward_pre_hooks
    return as_written and not hooked and methods.keys().isdisjoint(vars(module))
