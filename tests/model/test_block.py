"""The block and its parts equal PyTorch's encoder layer and the published formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from labkit import GPTConfig
from labkit.model import MLP, Block

BATCH, SEQ, HEADS, D_MODEL, D_FF = 3, 7, 2, 10, 23


def shape(**changes: Any) -> GPTConfig:
    sizes = {"vocab_size": 13, "context_length": 9, "d_model": D_MODEL, "n_layers": 1, "n_heads": HEADS}
    return GPTConfig(**sizes | {"d_ff": D_FF} | changes)


def randomised(module: nn.Module) -> Any:
    torch.manual_seed(1)
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def test_block_equals_torch_encoder_layer_on_copied_weights() -> None:
    block = randomised(Block(shape(activation="gelu")))
    layer = nn.TransformerEncoderLayer(
        D_MODEL, HEADS, D_FF, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    ).double()
    attention = block.attention
    state = {
        "self_attn.in_proj_weight": torch.cat([m.weight for m in _qkv(attention)]),
        "self_attn.in_proj_bias": torch.cat([m.bias for m in _qkv(attention)]),
        "self_attn.out_proj.weight": attention.out.weight,
        "self_attn.out_proj.bias": attention.out.bias,
        "linear1.weight": block.mlp.up.weight,
        "linear1.bias": block.mlp.up.bias,
        "linear2.weight": block.mlp.down.weight,
        "linear2.bias": block.mlp.down.bias,
        "norm1.weight": block.norm1.weight,
        "norm1.bias": block.norm1.bias,
        "norm2.weight": block.norm2.weight,
        "norm2.bias": block.norm2.bias,
    }
    layer.load_state_dict(state)  # strict: nothing is left as PyTorch initialised it
    x = torch.randn(BATCH, SEQ, D_MODEL, dtype=torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(SEQ, dtype=torch.float64)
    torch.testing.assert_close(block(x), layer(x, src_mask=mask), atol=1e-12, rtol=1e-12)


def _qkv(attention: Any) -> list[nn.Linear]:
    return [attention.query, attention.key, attention.value]


def _gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def _gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(("activation", "formula"), [("gelu", _gelu), ("gelu_tanh", _gelu_tanh)])
def test_mlp_equals_its_formula(activation: str, formula: Any) -> None:
    mlp = randomised(MLP(shape(activation=activation)))
    x = torch.randn(BATCH, SEQ, D_MODEL, dtype=torch.float64)
    hidden = formula(x @ mlp.up.weight.mT + mlp.up.bias)
    torch.testing.assert_close(mlp(x), hidden @ mlp.down.weight.mT + mlp.down.bias, atol=1e-12, rtol=1e-12)


def test_the_two_gelus_differ_where_it_can_be_seen() -> None:
    x = torch.randn(BATCH, SEQ, D_MODEL, dtype=torch.float64)
    exact, approximate = (randomised(MLP(shape(activation=name))) for name in ("gelu", "gelu_tanh"))
    difference = (exact(x) - approximate(x)).abs().max()
    assert 1e-6 < difference < 1e-2


def test_swiglu_gates_the_up_projection() -> None:
    mlp = randomised(MLP(shape(activation="swiglu", bias=False)))
    x = torch.randn(BATCH, SEQ, D_MODEL, dtype=torch.float64)
    gate = x @ mlp.gate.weight.mT
    hidden = gate / (1 + torch.exp(-gate)) * (x @ mlp.up.weight.mT)
    torch.testing.assert_close(mlp(x), hidden @ mlp.down.weight.mT, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_norm_equals_its_formula_with_the_configured_eps(norm: str) -> None:
    block = randomised(Block(shape(norm=norm, norm_eps=0.3)))
    x = torch.randn(BATCH, SEQ, D_MODEL, dtype=torch.float64)
    if norm == "layernorm":
        centred = x - x.mean(-1, keepdim=True)
        expected = centred / (centred.square().mean(-1, keepdim=True) + 0.3).sqrt() * block.norm1.weight
        expected = expected + block.norm1.bias
    else:
        expected = x / (x.square().mean(-1, keepdim=True) + 0.3).sqrt() * block.norm1.weight
    torch.testing.assert_close(block.norm1(x), expected, atol=1e-12, rtol=1e-12)


def test_without_biases_there_is_no_bias_anywhere() -> None:
    block = Block(shape(bias=False, qkv_bias=False, activation="swiglu"))
    assert not [name for name, _ in block.named_parameters() if name.endswith("bias")]


def test_a_block_whose_branches_write_nothing_passes_the_residual_on() -> None:
    block = randomised(Block(shape()))
    for linear in (block.attention.out, block.mlp.down):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    x = torch.randn(BATCH, SEQ, D_MODEL, dtype=torch.float64)
    assert torch.equal(block(x), x)


def test_residual_dropout_falls_on_the_branches_and_spares_the_stream() -> None:
    block = randomised(Block(shape(dropout=0.5)))
    nn.init.zeros_(block.mlp.down.weight)
    nn.init.zeros_(block.mlp.down.bias)
    x = torch.randn(BATCH, SEQ, D_MODEL, dtype=torch.float64)
    branch = block.attention(block.norm1(x))
    added = block.train()(x) - x
    dropped = added.abs() < 1e-12
    assert 0.3 < dropped.double().mean() < 0.7
    torch.testing.assert_close(added[~dropped], 2 * branch[~dropped])  # kept ones are scaled by 1 / (1 - p)
