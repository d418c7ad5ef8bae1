"""What a learner may do to a model: patch a forward, add a hook, put in a module of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from labkit import GPT
from labkit.model import MLP, Block, CausalSelfAttention

Change = Callable[[GPT, pytest.MonkeyPatch], Any]


class Other(nn.Module):
    """In place of the feed-forward network."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(-1).sin()


class Doubled(nn.Linear):
    """In place of a linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Averaging(nn.Module):
    """Attention without a cache: every position takes the mean of all up to it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]


def doubled(linear: nn.Linear) -> Doubled:
    other = Doubled(linear.in_features, linear.out_features, bias=linear.bias is not None).double()
    other.load_state_dict(linear.state_dict())
    return other


def patch_forward(module: nn.Module, changed: Callable[[Tensor], Tensor]) -> None:
    original = module.forward
    module.forward = lambda *given, **named: changed(original(*given, **named))


def patch_class(patch: pytest.MonkeyPatch, kind: type, forward: Callable[..., Tensor]) -> None:
    patch.setattr(kind, "forward", forward)


def flipped(x: Tensor) -> Tensor:
    return x.flip(-1)


def double_attention(original: Any) -> Callable[..., Tensor]:
    def forward(self: CausalSelfAttention, x: Tensor, cache: Any = None) -> Tensor:
        return 2 * original(self, x, cache)

    return forward


def negative_logits(model: GPT) -> Callable[..., Tensor]:
    original = model.forward

    def forward(ids: Tensor, cache: Any = None) -> Tensor:
        return -original(ids, cache=cache)

    return forward


CHANGES: dict[str, Change] = {
    "block.mlp.forward": lambda m, _: patch_forward(m.blocks[1].mlp, flipped),
    "block.forward": lambda m, _: patch_forward(m.blocks[0], flipped),
    "attention.forward without a cache": lambda m, _: setattr(
        m.blocks[0].attention, "forward", Averaging().forward
    ),
    "linear.forward": lambda m, _: patch_forward(m.blocks[0].attention.query, flipped),
    "norm.forward": lambda m, _: patch_forward(m.norm, flipped),
    "head.forward": lambda m, _: patch_forward(m.head, flipped),
    "model.forward": lambda m, _: patch_forward(m, flipped),
    "model.forward with a cache": lambda m, _: setattr(m, "forward", negative_logits(m)),
    "model.embed": lambda m, _: setattr(m, "embed", lambda ids, start=0: 2 * GPT.embed(m, ids, start)),
    "MLP.forward": lambda _, p: patch_class(p, MLP, lambda self, x: -self.down(self.up(x).sin())),
    "Block.forward": lambda _, p: patch_class(p, Block, lambda self, x: x + self.mlp(self.norm2(x))),
    "CausalSelfAttention.forward": lambda _, p: patch_class(
        p, CausalSelfAttention, double_attention(CausalSelfAttention.forward)
    ),
    "GPT.forward": lambda _, p: patch_class(p, GPT, lambda self, ids: -self.head(self.hidden(ids))),
    "nn.Linear.forward": lambda _, p: patch_class(
        p, nn.Linear, lambda self, x: torch.nn.functional.linear(x, -self.weight, self.bias)
    ),
    "hook of a block": lambda m, _: m.blocks[0].register_forward_hook(lambda module, given, out: -out),
    "hook of the head": lambda m, _: m.head.register_forward_hook(lambda module, given, out: -out),
    "hook of the model": lambda m, _: m.register_forward_hook(lambda module, given, out: -out),
    "pre-hook of a block": lambda m, _: m.blocks[1].register_forward_pre_hook(
        lambda module, given: -given[0]
    ),
    "pre-hook of attention": lambda m, _: m.blocks[1].attention.register_forward_pre_hook(
        lambda module, given: given[0].flip(-1)
    ),
    "another feed-forward network": lambda m, _: setattr(m.blocks[0], "mlp", Other()),
    "another dropout": lambda m, _: setattr(m.blocks[1], "dropout", Other()),
    "another attention": lambda m, _: setattr(m.blocks[0], "attention", Averaging()),
    "a linear layer of one's own": lambda m, _: setattr(m.blocks[1].mlp, "up", doubled(m.blocks[1].mlp.up)),
    "a head of one's own": lambda m, _: setattr(m, "head", doubled(m.head)),
}
