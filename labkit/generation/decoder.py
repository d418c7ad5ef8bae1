"""A model that reads on: prompts once, then one token per row and step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.config import GPTConfig
from labkit.model import (
    GPT,
    MLP,
    Block,
    CausalSelfAttention,
    KVCache,
    LearnedPositions,
    RotaryPositions,
    SinusoidalPositions,
)
from labkit.model.cache import LayerCache

Layer = Callable[[Tensor], Tensor]
"""(..., features) to (..., features)."""

Forward = Callable[[Tensor, KVCache, Tensor | None], Tensor]
"""Ids (rows, seq), a cache, and which position of each row counts (the only one if None) to (rows, vocab)."""


class Decoder:
    """Logits of the next token for rows that grow, with a key-value cache.

    It computes what `model(ids, cache=cache)` does, in the way that costs least here: on a CPU as a flat list
    of products (`flat_forward`), on a GPU as a captured graph (`graph_step`). Where that could differ, the
    model is called: under autocast, with hooks, with modules of your own, and with weights split by FSDP.
    """

    def __init__(self, model: GPT, capacity: int) -> None:
        self.model, self.capacity = model, capacity
        embedding = model.token_embedding.weight
        self.device, self.dtype = embedding.device, embedding.dtype
        autocast = torch.is_autocast_enabled(self.device.type)
        if autocast:
            self.dtype = torch.get_autocast_dtype(self.device.type)
        plain = not autocast and _is_unchanged(model)
        self.flat = plain and self.device.type == "cpu"
        self.graph = plain and self.device.type == "cuda"
        self._forward = flat_forward(model) if self.flat else _called(model)
        self._graph_step: Callable[[Tensor], Tensor] | None = None
        self._fixed: KVCache | None = None

    def _cache(self, rows: int, *, fixed: bool = False) -> KVCache:
        return KVCache(
            self.model.config, rows, capacity=self.capacity, fixed=fixed, device=self.device, dtype=self.dtype
        )

    @property
    def full(self) -> bool:
        """Whether the cache has no room for another token."""
        return self.cache.length == self.capacity

    def read(self, prompts: Sequence[Tensor], copies: int = 1) -> Tensor:
        """Read prompts, (seq,) ids each, from the start; returns (prompts * copies, vocab) logits.

        Each row that follows a prompt is kept `copies` times: the prompt is read once for all of them.
        """
        lengths = [len(prompt) for prompt in prompts]
        ids = nn.utils.rnn.pad_sequence(list(prompts), batch_first=True)
        self.cache = self._cache(len(prompts))
        logits = self._forward(ids, self.cache, torch.tensor(lengths, device=self.device) - 1)
        self.cache.trim(lengths)
        rows = [number for number in range(len(prompts)) for _ in range(copies)]
        if self.graph:
            self._load_graph(rows)
        elif copies > 1:
            self.keep(rows)
        return logits[rows] if copies > 1 else logits

    def _load_graph(self, rows: list[int]) -> None:
        prefilled = self.cache
        if self._fixed is None or self._fixed.batch != len(rows):
            self._fixed = self._cache(len(rows), fixed=True)
            self._graph_step = graph_step(self.model, self._fixed)
        self.cache = self._fixed
        self.cache.copy_rows(prefilled, rows)

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token in each row, (rows,); returns (rows, vocab) logits."""
        if self._graph_step is not None:
            return self._graph_step(tokens)
        return self._forward(tokens[:, None], self.cache, None)

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only, in this order."""
        remaining = self._cache(len(rows))
        remaining.copy_rows(self.cache, rows)
        self.cache = remaining


class UncachedDecoder:
    """The same for a model with attention of your own that takes no cache: every step reads everything."""

    graph = False

    def __init__(self, model: GPT, capacity: int) -> None:
        self.model, self.capacity, self.device = model, capacity, model.token_embedding.weight.device

    @property
    def full(self) -> bool:
        return max(len(row) for row in self.rows) == self.capacity

    def read(self, prompts: Sequence[Tensor], copies: int = 1) -> Tensor:
        self.rows = [prompt for prompt in prompts for _ in range(copies)]
        ends = torch.tensor([len(row) - 1 for row in self.rows], device=self.device)
        return self.model(nn.utils.rnn.pad_sequence(self.rows, batch_first=True), at=ends)

    def step(self, tokens: Tensor) -> Tensor:
        return self.read(
            [torch.cat([row, token]) for row, token in zip(self.rows, tokens[:, None], strict=True)]
        )

    def keep(self, rows: list[int]) -> None:
        self.rows = [self.rows[row] for row in rows]


def decoder_for(model: GPT, capacity: int) -> Decoder | UncachedDecoder:
    """With a cache wherever the model's modules take one.  capacity: tokens that a row may grow to."""
    readers = [part for block in model.blocks for part in (block, getattr(block, "attention", block))]
    if all("cache" in inspect.signature(reader.forward).parameters for reader in readers):
        return Decoder(model, capacity)
    return UncachedDecoder(model, capacity)


KINDS = {GPT, Block, CausalSelfAttention, MLP, LearnedPositions, SinusoidalPositions, RotaryPositions}
KINDS |= {nn.ModuleList, nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.Dropout}


def _is_unchanged(model: GPT) -> bool:
    return all(
        type(module) in KINDS and not module._forward_hooks and not module._forward_pre_hooks
        for module in model.modules()
    )


def _called(model: GPT) -> Forward:
    def forward(ids: Tensor, cache: KVCache, at: Tensor | None) -> Tensor:
        logits = model(ids, cache=cache, at=at)
        return logits[:, 0] if at is None else logits

    return forward


def flat_forward(model: GPT) -> Forward:
    """What the model computes, with hardly a module call, for a CPU.

    For one token the products are so small that calling modules would take as long as computing them.
    """
    blocks = [_FlatBlock(cast(Block, block), model.config) for block in model.blocks]
    norm, head, embedding = _norm(model.norm), _product(model.head), model.token_embedding.weight
    scale = model.config.d_model**0.5 if model.config.embedding_scale else None

    def forward(ids: Tensor, cache: KVCache, at: Tensor | None) -> Tensor:
        cache.begin(ids)
        x = F.embedding(ids, embedding)  # (rows, seq, d_model)
        if scale is not None:
            x = x * scale
        if model.positions is not None:
            x = x + model.positions(ids.shape[1], cache.positions)
        if ids.numel() == 1:
            x = x.view(-1)  # (d_model,): a matrix times a vector is the cheapest product there is
        for block, layer in zip(blocks, cache.layers, strict=True):
            x = block(x, layer, cache, ids.shape)
        cache.advance(ids.shape[1])
        if x.ndim == 1:
            return head(norm(x))[None]
        x = x[:, 0] if at is None else x[torch.arange(len(x)), at]  # (rows, d_model)
        return head(norm(x))

    return forward


class _FlatBlock:
    """What a Block does, as a list of products.

    x: (rows, seq, d_model), or (d_model,) for a single token.  shape: rows and seq.
    """

    def __init__(self, block: Block, config: GPTConfig) -> None:
        attention = block.attention
        self.grouped, self.rotary = attention.grouped, attention.rotary
        self.heads = [config.n_heads, config.kv_heads, config.kv_heads]
        self.head_dim = config.head_dim
        self.norm1, self.norm2 = _norm(block.norm1), _norm(block.norm2)
        self.qkv = _joined([attention.query, attention.key, attention.value])
        self.out, self.mlp = _product(attention.out), _feed_forward(block.mlp)

    def __call__(self, x: Tensor, layer: LayerCache, cache: KVCache, shape: torch.Size) -> Tensor:
        heads = self.qkv(self.norm1(x))
        if x.ndim == 1:
            heads = heads.view(1, -1, 1, self.head_dim)
        else:
            heads = heads.view(*shape, -1, self.head_dim).transpose(1, 2)
        q, k, v = heads.split(self.heads, dim=1)  # (rows, heads, seq, head_dim)
        if self.rotary is not None:
            q, k = self.rotary(q, cache.positions), self.rotary(k, cache.positions)
        causal = cache.length == 0 and cache.mask is None
        k, v = layer.append(k, v)  # (rows, kv_heads, slots, head_dim)
        mixed = F.scaled_dot_product_attention(
            q, k, v, attn_mask=cache.mask, is_causal=causal, enable_gqa=self.grouped
        )
        mixed = mixed.view(-1) if x.ndim == 1 else mixed.transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return x + self.mlp(self.norm2(x))


ONEDNN_SIZE = 2**18
"""Weights of a matrix from which on oneDNN, which uses all threads for a single row, beats `F.linear`."""
JOINED_SIZE = 2**21
"""Weights of three projections up to which joining them is worth a copy."""


def _product(linear: nn.Linear) -> Layer:
    return _product_of(linear.weight, linear.bias)


def _product_of(weight: Tensor, bias: Tensor | None) -> Layer:
    large = weight.dtype == torch.float32 and weight.numel() >= ONEDNN_SIZE
    if large and torch.get_num_threads() > 1 and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return lambda x: _onednn(x, weight, bias)
    if bias is None:
        return lambda x: torch.mv(weight, x) if x.ndim == 1 else F.linear(x, weight)
    return lambda x: torch.addmv(bias, weight, x) if x.ndim == 1 else F.linear(x, weight, bias)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product = torch.ops.mkldnn._linear_pointwise.default
    if x.ndim == 1:
        return product(x[None], weight, bias, "none", [], "")[0]
    return product(x, weight, bias, "none", [], "")


def _joined(linears: Sequence[nn.Linear]) -> Layer:
    if sum(linear.weight.numel() for linear in linears) > JOINED_SIZE:
        products = [_product(linear) for linear in linears]
        return lambda x: torch.cat([product(x) for product in products], dim=-1)
    # Long rows are read faster than short ones: (in, out), not (out, in).
    weight = torch.cat(tuple(linear.weight.t() for linear in linears), dim=1).t()
    biases = tuple(linear.bias for linear in linears if linear.bias is not None)
    return _product_of(weight, torch.cat(biases) if biases else None)


def _norm(module: nn.Module) -> Layer:
    assert isinstance(module, nn.LayerNorm | nn.RMSNorm)
    shape, scale = list(module.normalized_shape), module.weight
    if isinstance(module, nn.RMSNorm):
        return lambda x: F.rms_norm(x, shape, scale, module.eps)
    bias, eps = module.bias, module.eps
    return lambda x: torch.layer_norm(x, shape, scale, bias, eps)


def _feed_forward(mlp: MLP) -> Layer:
    up, down = _product(mlp.up), _product(mlp.down)
    if mlp.gate is not None:
        gate = _product(mlp.gate)
        return lambda x: down(F.silu(gate(x)) * up(x))
    approximate = "tanh" if mlp.activation == "gelu_tanh" else "none"
    return lambda x: down(F.gelu(up(x), approximate=approximate))


def graph_step(model: GPT, cache: KVCache) -> Callable[[Tensor], Tensor]:
    """One decoding step as a CUDA graph: a single launch in place of hundreds.

    cache: a fixed one; what it holds is lost. The returned function reads (rows,) tokens into it and gives
    (rows, vocab) logits, which the next call overwrites.
    """
    tokens = torch.zeros(cache.batch, 1, dtype=torch.long, device=cache.slot.device)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries set themselves up before capture
        for _ in range(2):
            cache.clear()
            model(tokens, cache=cache)
    torch.cuda.current_stream().wait_stream(side)
    cache.clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = model(tokens, cache=cache)[:, 0]

    def step(drawn: Tensor) -> Tensor:
        tokens.copy_(drawn[:, None])
        graph.replay()
        cache.length += 1  # the rest of the cache's state is counted in the graph
        return logits

    return step
