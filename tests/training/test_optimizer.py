"""AdamW decays matrices alone, trains what is not frozen, and steps as PyTorch's plain form does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from labkit import GPT, GPTConfig, TrainConfig
from labkit.training import build_optimizer


def gpt(**changes: Any) -> GPT:
    sizes = {"vocab_size": 13, "context_length": 9, "d_model": 10, "n_layers": 2, "n_heads": 2}
    torch.manual_seed(0)
    return GPT(GPTConfig(**sizes | changes))


def names_by_decay(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[float, list[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        group["weight_decay"]: [names[id(each)] for each in group["params"]]
        for group in optimizer.param_groups
    }


def test_decay_falls_on_matrices_alone() -> None:
    model = gpt()
    groups = names_by_decay(model, build_optimizer(model, TrainConfig(weight_decay=0.3)))
    assert set(groups) == {0.3, 0.0}
    assert all(name.endswith("bias") or "norm" in name for name in groups[0.0])
    assert not any(name.endswith("bias") or "norm" in name for name in groups[0.3])
    assert {"token_embedding.weight", "positions.weight", "blocks.1.mlp.up.weight"} <= set(groups[0.3])
    assert sorted(groups[0.3] + groups[0.0]) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize(("tied", "tables"), [(True, 1), (False, 2)])
def test_a_tied_head_is_stepped_once(tied: bool, tables: int) -> None:
    optimizer = build_optimizer(gpt(tie_weights=tied), TrainConfig())
    shapes = [tuple(each.shape) for group in optimizer.param_groups for each in group["params"]]
    assert shapes.count((13, 10)) == tables


def test_settings_reach_the_optimizer() -> None:
    optimizer = build_optimizer(gpt(), TrainConfig(learning_rate=7e-4, betas=(0.8, 0.95)))
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"]) == (7e-4, (0.8, 0.95))


def test_frozen_parameters_are_left_out_and_do_not_move() -> None:
    model = gpt(tie_weights=False)
    model.token_embedding.weight.requires_grad_(False)
    before = model.token_embedding.weight.clone()
    optimizer = build_optimizer(model, TrainConfig(weight_decay=0.5, learning_rate=0.1))
    names = [name for group in names_by_decay(model, optimizer).values() for name in group]
    assert "token_embedding.weight" not in names
    assert "head.weight" in names
    model.loss(torch.tensor([[1, 2, 3]]), torch.tensor([[2, 3, 4]])).backward()
    optimizer.step()
    assert torch.equal(model.token_embedding.weight, before)


def test_a_model_without_vectors_has_one_group() -> None:
    assert len(build_optimizer(nn.Linear(3, 5, bias=False), TrainConfig()).param_groups) == 1


def test_steps_equal_torchs_unfused_adamw() -> None:
    models = [gpt(), gpt()]
    config = TrainConfig(learning_rate=3e-3, weight_decay=0.2, betas=(0.85, 0.97))
    ours = build_optimizer(models[0], config)
    parameters = list(models[1].parameters())
    plain = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.2},
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=3e-3,
        betas=(0.85, 0.97),
        eps=1e-8,
        fused=False,
        foreach=False,
    )
    for _ in range(3):
        ids = torch.randint(13, (3, 8))
        for model, optimizer in zip(models, (ours, plain), strict=True):
            optimizer.zero_grad()
            model.loss(ids[:, :-1], ids[:, 1:]).backward()
            optimizer.step()
    for (name, mine), theirs in zip(models[0].named_parameters(), parameters, strict=True):
        # a key bias has a gradient of rounding noise alone, which Adam blows up to full steps
        tolerance = 1e-2 if name.endswith("key.bias") else 1e-5
        torch.testing.assert_close(mine, theirs, atol=tolerance, rtol=1e-4)


def test_a_parameter_with_strides_is_made_contiguous_and_trained_like_any_other() -> None:
    strided, plain = gpt(), gpt()
    up = strided.blocks[1].mlp.up
    up.weight = nn.Parameter(up.weight.detach().T.contiguous().T)
    assert not up.weight.is_contiguous()
    for model in (strided, plain):
        optimizer = build_optimizer(model, TrainConfig(learning_rate=0.1))
        model.blocks[1].mlp.up.weight.sum().backward()
        optimizer.step()
    assert torch.equal(up.weight, plain.blocks[1].mlp.up.weight)


def test_a_model_that_is_all_frozen_is_refused() -> None:
    with pytest.raises(ValueError, match="every parameter is frozen; nothing is left to train"):
        build_optimizer(gpt().requires_grad_(False), TrainConfig())
