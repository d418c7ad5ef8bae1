"""No position sees a later one: change a later token and everything before it stays the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from labkit import GPT, GPTConfig
from labkit.config import Positions
from labkit.model import Block, CausalSelfAttention

BATCH, SEQ, D_MODEL = 3, 7, 12

VARIANTS: dict[str, dict[str, Any]] = {
    **{positions: {"positions": positions} for positions in get_args(Positions)},
    "grouped": {"n_heads": 6, "n_kv_heads": 2, "positions": "rotary"},
    "modern": {
        "n_heads": 2,
        "n_kv_heads": 1,
        "positions": "rotary",
        "norm": "rmsnorm",
        "activation": "swiglu",
        "bias": False,
        "qkv_bias": False,
    },
}


def build(kind: Callable[[GPTConfig], nn.Module], variant: str, training: bool) -> nn.Module:
    sizes = {"vocab_size": 13, "context_length": 9, "d_model": D_MODEL, "n_layers": 2, "n_heads": 2}
    config = GPTConfig(**sizes | {"dropout": 0.2, "attention_dropout": 0.3} | VARIANTS[variant])
    torch.manual_seed(0)
    module = kind(config).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.train(training)


def run(module: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(5)  # the same dropout each time
    with torch.no_grad():
        return module(x)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", [CausalSelfAttention, Block, GPT])
def test_no_position_sees_a_later_one(kind: Any, variant: str, training: bool) -> None:
    module = build(kind, variant, training)
    torch.manual_seed(1)
    if kind is GPT:
        x = torch.randint(13, (BATCH, SEQ))
    else:
        x = torch.randn(BATCH, SEQ, D_MODEL, dtype=torch.float64)
    before = run(module, x)
    for t in range(1, SEQ):
        changed = x.clone()
        changed[:, t:] = (x[:, t:] + 5) % 13 if kind is GPT else x[:, t:] + 100
        after = run(module, changed)
        torch.testing.assert_close(after[:, :t], before[:, :t], atol=1e-12, rtol=1e-12)
        assert (after[:, t] - before[:, t]).abs().max() > 1e-3  # the change was seen where it may be


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_gradient_flows_from_an_output_to_a_later_input(variant: str) -> None:
    model = build(GPT, variant, training=False)
    x = model.embed(torch.randint(13, (BATCH, SEQ))).detach().requires_grad_()
    hidden = x
    for block in model.blocks:
        hidden = block(hidden)
    hidden[:, 3].sum().backward()
    assert torch.equal(x.grad[:, 4:], torch.zeros_like(x.grad[:, 4:]))
    assert (x.grad[:, :4].abs().amax((0, 2)) > 0).all()


def test_a_shorter_sequence_gives_the_same_outputs_as_the_start_of_a_longer_one() -> None:
    model = build(GPT, "learned", training=False)
    ids = torch.randint(13, (BATCH, SEQ))
    whole = run(model, ids)
    for t in range(1, SEQ):
        torch.testing.assert_close(run(model, ids[:, :t]), whole[:, :t], atol=1e-12, rtol=1e-12)


def test_the_rows_of_a_batch_do_not_see_each_other() -> None:
    model = build(GPT, "modern", training=False)
    ids = torch.randint(13, (BATCH, SEQ))
    whole = run(model, ids)
    for row in range(BATCH):
        torch.testing.assert_close(
            run(model, ids[row : row + 1]), whole[row : row + 1], atol=1e-12, rtol=1e-12
        )
