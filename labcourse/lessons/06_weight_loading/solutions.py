"""Solutions of lesson 06's exercises."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from labkit.config import GPTConfig
from labkit.model import GPT, RotaryPositions, SinusoidalPositions


def first_byte(n: int, begin: int, shape: tuple[int, int], size: int, row: int, column: int) -> int:
    """Before the number lie 8 bytes with the header's length, the header, earlier tensors, earlier numbers.

    `begin` counts from the end of the header. Rows come one after another, so `row` whole rows of `shape[1]`
    numbers and `column` single ones are skipped, each of `size` bytes.
    """
    number = row * shape[1] + column
    return 8 + n + begin + size * number


def loading_alarms() -> dict[str, list[str]]:
    """**A.** What the heads found is added up, and a sum knows no order: the same function, other tensors.

    **B.** Attention's weights sum to 1, so they mix `v + b` to a mixture of `v`, plus `b`: it arrives, unlike
    a key's bias. **C.** No tensor knows how many heads there are; the function does. **D.** Dropout is in no
    tensor either, and in evaluation mode it does nothing.

    An equal function does not mean equal weights (A), equal weights do not mean an equal function (C), and
    both together do not mean that training goes on as before (D).
    """
    return {"A": ["round trip"], "B": ["logits", "round trip"], "C": ["logits"], "D": []}


def neox_to_gpt2(weight: Tensor, bias: Tensor, n_heads: int) -> tuple[Tensor, Tensor]:
    """The rows' number counts (head, part, feature), the last fastest; GPT-2 wants (part, head, feature).

    So the rows become three axes, the first two change places, and the three become one again, for weight and
    bias alike. Only then is the weight turned, to (in, out).
    """

    def by_part(rows: Tensor) -> Tensor:
        return rows.unflatten(0, (n_heads, 3, -1)).transpose(0, 1).flatten(0, 2)

    return by_part(weight).T, by_part(bias)


def repair_loader(tensors: dict[str, Tensor], config: GPTConfig) -> GPT:
    """Three things were wrong.

    Tables of sines and cosines are *buffers*: computed, never trained, so in no file. On the meta device they
    were shapes too, and `to_empty` gave them memory in which anything may stand. They are computed again.
    `nn.Parameter(….clone())` makes a second tensor; sharing is to use the same object. And a head is shared
    only where the model is tied; elsewhere the file's own head was overwritten.
    """
    with torch.device("meta"):
        model = GPT(config)
    model.to_empty(device="cpu")
    for module in model.modules():
        if isinstance(module, SinusoidalPositions | RotaryPositions):
            module.compute_tables()
    for name, tensor in tensors.items():
        model.get_parameter(name).data.copy_(tensor)
    if config.tie_weights:
        model.head.weight = model.token_embedding.weight
    return model


def first_difference(one: nn.Module, other: nn.Module, ids: Tensor) -> str:
    """A hook sees a module when it has finished, and children finish before their parents.

    So the order of the calls is the order of running, innermost first. `not (… <= 1e-4)` is true for nan,
    where `… > 1e-4` is not. The hooks go away also when a model fails.
    """

    def outputs(model: nn.Module) -> list[tuple[str, Tensor]]:
        seen: list[tuple[str, Tensor]] = []
        hooks = [
            module.register_forward_hook(lambda _, inputs, output, name=name: seen.append((name, output)))
            for name, module in model.named_modules()
        ]
        try:
            with torch.no_grad():
                model(ids)
        finally:
            for hook in hooks:
                hook.remove()
        return seen

    for (name, left), (_, right) in zip(outputs(one), outputs(other), strict=True):
        if not (left - right).abs().max() <= 1e-4:
            return name
    return ""
