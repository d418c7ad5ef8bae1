"""Check of the first difference between two models, lesson 06's last exercise."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from labkit.config import GPTConfig
from labkit.course.check import Answer, expect
from labkit.model import GPT


def first_difference(answer: Answer) -> str:
    config = GPTConfig(
        vocab_size=23,
        context_length=9,
        d_model=12,
        n_layers=3,
        n_heads=2,
        activation="swiglu",
        tie_weights=False,
    )
    one, ids = spread(GPT(config).eval()), torch.randint(0, 23, (2, 7))
    for place in ("blocks.1.attention.value", "blocks.2.mlp.gate", "blocks.0.norm2", "head"):
        other = copy.deepcopy(one)
        other.token_embedding.weight.data += 1e-6  # as another machine might round
        other.get_parameter(f"{place}.weight").data += 0.1
        _judge_place(_named(answer, one, other, ids), place, _finishing_order(one, ids))
    other = GPT(replace(config, n_heads=3)).eval()
    other.load_state_dict(one.state_dict())
    expect(
        _named(answer, one, other, ids) == "blocks.0.attention.out",
        "Two models have the same weights and another number of heads, which shows in the output of "
        "blocks.0.attention.out first; you name something else. Do you compare outputs?",
    )
    other = copy.deepcopy(one)
    other.get_parameter("blocks.1.norm2.bias").data[5] += 5e-4
    expect(
        _named(answer, one, other, ids) == "blocks.1.norm2",
        "One feature of what blocks.1.norm2 gives is off by 5e-4, and you name something else. "
        "A mean would hide it.",
    )
    damaged = copy.deepcopy(one)
    damaged.get_parameter("blocks.0.mlp.up.weight").data[3, 2] = torch.nan
    expect(
        _named(answer, one, damaged, ids) == "blocks.0.mlp.up",
        "A weight of blocks.0.mlp.up is nan, and you name something else: `nan > 1e-4` is False.",
    )
    expect(_named(answer, one, copy.deepcopy(one), ids) == "", 'Two equal models: return the empty text "".')
    return "Keep it: with it one looks for the mistake in one module, and not in a whole model."


def _named(answer: Answer, one: GPT, other: GPT, ids: Tensor) -> str:
    one.train()  # without dropout it computes the same
    other.eval()
    found: str = answer(one, other, ids)
    expect(isinstance(found, str), f"Return a module's name as a text, not {type(found).__name__}.")
    modules = [*one.modules(), *other.modules()]
    left = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)
    expect(left == 0, f"{left} hooks are left behind: the next comparison would record everything twice.")
    for model, which, mode in ((one, "first", "training"), (other, "other", "evaluation")):
        kept = all(module.training is (mode == "training") for module in model.modules())
        expect(kept, f"The {which} model came in {mode} mode and went back in another one.")
    return found


def _judge_place(found: str, place: str, order: list[str]) -> None:
    named = f"Two models differ in the weight of {place}; you name {found or 'the whole model'}"
    outside = found == "" or place.startswith(f"{found}.")
    expect(not outside, f"{named}, which contains it. Which of the two finishes first?")
    expect(found in order, f"{named}, and no module of that name runs.")
    rounding = found in ("token_embedding", "dropout")
    expect(not rounding, f"{named}: there they differ by a millionth. That is rounding; how much is allowed?")
    late = order.index(found) - order.index(place)
    twice = " when it first runs; it runs twice" if found.endswith("dropout") else ""
    expect(late >= 0, f"{named}, which runs before it and gives the same in both{twice}.")
    expect(
        late == 0 or found != "head", f"{named}, the last one that differs. Does each hook know its own name?"
    )
    expect(late != 1, f"{named}, the one after it: its *inputs* are the first to differ.")
    expect(
        late == 0, f"{named}, which runs later. Do you look at all modules, in the order in which they run?"
    )


def _finishing_order(model: GPT, ids: Tensor) -> list[str]:
    order: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: order.append(name))
        for name, module in model.named_modules()
    ]
    model(ids)
    for hook in hooks:
        hook.remove()
    return list(dict.fromkeys(order))


def spread(model: GPT) -> GPT:
    """Weights and biases large enough that every one of them shows in the logits."""
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.4 + (0.5 if parameter.ndim == 1 else 0)
    return model
