"""What changes the predictions of a modern GPT, found by trying: exercise 3 of lesson 07."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from labkit.config import GPTConfig
from labkit.model import GPT

REASONS = {
    "B": "A norm hides the size from its block, but what the block adds meets a stream twice as large.",
    "D": "A product of two vectors survives any common order of their features, unless something else treats "
    "the features differently in between.",
    "E": "One of the two factors is inside a function that is no straight line.",
    "H": "In a score the common turn cancels, since two turned vectors meet. Whom does a turned value meet?",
}
"""Why what changes the predictions does so."""


def what_changes_nothing() -> set[str]:
    """The letters of exercise 3 that leave the logits of a small modern model as they are."""
    sizes: dict[str, Any] = {"d_model": 24, "n_layers": 2, "n_heads": 6, "n_kv_heads": 2, "d_ff": 40}
    parts: dict[str, Any] = {"positions": "rotary", "norm": "rmsnorm", "activation": "swiglu"}
    plain: dict[str, Any] = {"bias": False, "qkv_bias": False, "tie_weights": False}
    model = GPT(GPTConfig(vocab_size=19, context_length=120, **sizes, **parts, **plain))
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.5)
        ids = torch.randint(19, (3, 11))
        before, same = model(ids), set()
        for letter, change in _CHANGES.items():
            changed: Any = copy.deepcopy(model)
            change(changed)
            if torch.allclose(changed(ids), before, rtol=1e-3, atol=1e-3):
                same.add(letter)
    return same


def _count_from_100(model: Any) -> None:
    rotary = model.blocks[0].attention.rotary  # one for all blocks
    rotary.cos, rotary.sin = rotary.cos[100:], rotary.sin[100:]


def _double_embeddings(model: Any) -> None:
    model.token_embedding.weight.mul_(2)


def _exchange_features(model: Any) -> None:
    for block in model.blocks:
        for layer in (block.attention.query, block.attention.key):
            layer.weight.copy_(layer.weight.unflatten(0, (-1, 4))[:, [1, 0, 2, 3]].flatten(0, 1))


def _turn_values(model: Any) -> None:
    def turned(layer: nn.Module, arguments: object, v: Tensor) -> Tensor:
        heads: Tensor = attention.rotary(attention.split_heads(v))  # (batch, kv_heads, seq, head_dim)
        return heads.transpose(1, 2).flatten(2)

    for block in model.blocks:
        attention = block.attention
        attention.value.register_forward_hook(turned)


def _scale(**factors: float) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        for block in model.blocks:
            parts = {"norm": block.norm1, **dict(block.attention.named_children())}
            parts |= dict(block.mlp.named_children())
            for name, factor in factors.items():
                parts[name].weight.mul_(factor)

    return change


_CHANGES = {
    "A": _count_from_100,
    "B": _double_embeddings,
    "C": _scale(query=2, key=1 / 2),
    "D": _exchange_features,
    "E": _scale(gate=2, down=1 / 2),
    "F": _scale(up=2, down=1 / 2),
    "G": _scale(norm=2, query=1 / 2, key=1 / 2, value=1 / 2),
    "H": _turn_values,
}
