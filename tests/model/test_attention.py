"""Attention equals the textbook's and PyTorch's own, head by head."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from labkit import GPTConfig
from labkit.model import CausalSelfAttention

BATCH, SEQ, HEADS, HEAD_DIM = 3, 7, 2, 5


def shape(**changes: Any) -> GPTConfig:
    sizes = {"vocab_size": 13, "context_length": 9, "d_model": HEADS * HEAD_DIM, "n_layers": 1}
    return GPTConfig(**sizes | {"n_heads": HEADS} | changes)


def attention(seed: int = 0, **changes: Any) -> CausalSelfAttention:
    torch.manual_seed(seed)
    module = CausalSelfAttention(shape(**changes)).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def textbook(module: CausalSelfAttention, x: Tensor, heads: int, kv_heads: int, head_dim: int) -> Tensor:
    """One head at a time, with an explicit mask and softmax; nothing shared with labkit but weights."""
    seq = x.shape[1]
    q, k, v = module.query(x), module.key(x), module.value(x)
    outputs = []
    for head in range(heads):
        group = head // (heads // kv_heads)
        mine, theirs = (slice(n * head_dim, (n + 1) * head_dim) for n in (head, group))
        rows = []
        for t in range(seq):
            scores = torch.stack(
                [(q[:, t, mine] * k[:, s, theirs]).sum(-1) / math.sqrt(head_dim) for s in range(t + 1)], -1
            )  # (batch, t + 1): the future is not even computed
            weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
            rows.append(sum(weights[:, s, None] * v[:, s, theirs] for s in range(t + 1)))
        outputs.append(torch.stack(rows, 1))  # (batch, seq, head_dim)
    return torch.cat(outputs, -1) @ module.out.weight.mT + (0 if module.out.bias is None else module.out.bias)


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(2, 2, 5), (1, 1, 10), (6, 2, 3), (6, 1, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_attention_equals_the_textbook(heads: int, kv_heads: int, head_dim: int, bias: bool) -> None:
    module = attention(d_model=heads * head_dim, n_heads=heads, n_kv_heads=kv_heads, qkv_bias=bias, bias=bias)
    x = torch.randn(BATCH, SEQ, heads * head_dim, dtype=torch.float64)
    expected = textbook(module, x, heads, kv_heads, head_dim)
    torch.testing.assert_close(module(x), expected, atol=1e-12, rtol=1e-12)


def test_attention_equals_torch_multihead_attention_on_copied_weights() -> None:
    module = attention()
    reference = nn.MultiheadAttention(HEADS * HEAD_DIM, HEADS, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        projections = [module.query, module.key, module.value]
        reference.in_proj_weight.copy_(torch.cat([each.weight for each in projections]))
        reference.in_proj_bias.copy_(torch.cat([each.bias for each in projections]))
        reference.out_proj.weight.copy_(module.out.weight)
        reference.out_proj.bias.copy_(module.out.bias)
    x = torch.randn(BATCH, SEQ, HEADS * HEAD_DIM, dtype=torch.float64)
    hidden = torch.ones(SEQ, SEQ, dtype=torch.bool).triu(1)  # True: may not look
    expected, _ = reference(x, x, x, attn_mask=hidden, need_weights=False)
    torch.testing.assert_close(module(x), expected, atol=1e-12, rtol=1e-12)


def test_the_first_position_sees_only_itself() -> None:
    module = attention()
    x = torch.randn(BATCH, SEQ, HEADS * HEAD_DIM, dtype=torch.float64)
    torch.testing.assert_close(module(x)[:, 0], module.out(module.value(x[:, 0])))


def test_heads_are_split_and_ordered_by_feature() -> None:
    x = torch.arange(BATCH * SEQ * HEADS * HEAD_DIM).reshape(BATCH, SEQ, -1)
    split = attention().split_heads(x)
    assert split.shape == (BATCH, HEADS, SEQ, HEAD_DIM)
    assert torch.equal(split[2, 1, 4], x[2, 4, HEAD_DIM:])


def test_grouped_attention_has_the_smaller_key_and_value_projections() -> None:
    module = attention(d_model=18, n_heads=6, n_kv_heads=2)
    assert module.query.weight.shape == (18, 18)
    assert module.key.weight.shape == module.value.weight.shape == (6, 18)


def test_grouped_attention_equals_full_attention_with_repeated_heads() -> None:
    grouped = attention(d_model=18, n_heads=6, n_kv_heads=2)
    full = attention(d_model=18, n_heads=6)

    def repeat(tensor: Tensor) -> Tensor:
        return tensor.unflatten(0, (2, 3)).repeat_interleave(3, 0).flatten(0, 1)

    state = grouped.state_dict()
    full.load_state_dict(
        {name: repeat(t) if name.startswith(("key", "value")) else t for name, t in state.items()}
    )
    x = torch.randn(BATCH, SEQ, 18, dtype=torch.float64)
    torch.testing.assert_close(grouped(x), full(x), atol=1e-12, rtol=1e-12)


def test_attention_dropout_acts_in_training_and_not_in_evaluation() -> None:
    module = attention(attention_dropout=0.4)
    without = attention(attention_dropout=0.0)
    x = torch.randn(BATCH, SEQ, HEADS * HEAD_DIM, dtype=torch.float64)
    assert not torch.equal(module.train()(x), module(x))
    assert torch.equal(module.eval()(x), without.train()(x))
