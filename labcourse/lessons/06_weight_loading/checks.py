"""Checks of lesson 06's exercises."""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from numbers import Integral

import torch
from safetensors.torch import save
from torch import Tensor, nn

from labcourse.check import Answer, Wrong, expect
from labkit.config import GPTConfig
from labkit.model import GPT
from labkit.weights.gpt2 import GPT2
from labkit.weights.mapping import collect


def first_byte(answer: Answer) -> str:
    tensors = {
        "wide": torch.randn(3, 7),
        "half": torch.randn(5, 4).half(),
        "whole": torch.arange(36).view(4, 9),
    }
    file = save(tensors)
    n = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + n])
    for name, row, column in (("wide", 0, 0), ("wide", 2, 5), ("half", 3, 1), ("whole", 2, 6)):
        begin, (rows, columns) = header[name]["data_offsets"][0], tensors[name].shape
        size = tensors[name].itemsize
        found = answer(n, begin, (rows, columns), size, row, column)
        expect(
            isinstance(found, Integral), f"The place of a byte is a whole number, not {type(found).__name__}."
        )
        start, number = 8 + n + begin, row * columns + column
        likely = {
            begin + size * number: "that is too early. From where does `begin` count?",
            8 + begin + size * number: "that is too early. Where does the header end?",
            n + begin + size * number: "8 bytes too early. What stands in the file before the header's text?",
            start + number: f"you went on by one byte a number; each takes {size}.",
            start + 4 * number: f"you went on by 4 bytes a number; each takes {size}.",
            start + size * row * columns + column: "a number takes that many bytes within a row, too.",
            8 + n + size * (begin + number): "`begin` counts bytes already.",
            start + row * columns + size * column: "the rows before take that many bytes a number, too.",
            start + size * ((row - 1) * columns + column - 1): "rows and columns are counted from 0.",
            start + size * (column * rows + row): "you counted down the columns. Which are neighbours?",
            start + size * (row * rows + column): "how many numbers has a row? You took the number of rows.",
        }
        expect(
            found == start + size * number,
            f"For number [{row}, {column}] of a {rows} x {columns} matrix with {size} bytes a number: "
            + likely.get(found, f"byte {found} of the file belongs to something else."),
        )
    return "So a program can fetch one number out of a file of any size without reading the rest."


_CHECKS = ("logits", "round trip")
_THINK = {
    ("A", "logits"): "The output layer of attention adds up what the heads found. Does a sum know an order?",
    ("A", "round trip"): "It compares number by number with the file. Are all numbers in their old places?",
    ("B", "logits"): "A key's bias cancels in the softmax. Where does a value's bias go?",
    (
        "B",
        "round trip",
    ): "It compares what is saved with the file, number by number. Which numbers are 0 now?",
    ("C", "logits"): "What width has a head now, and by which root are its scores divided?",
    ("C", "round trip"): "It compares tensors. Which tensor depends on how many heads there are?",
    ("D", "logits"): "In which mode are logits compared, and what does dropout do in that mode?",
    ("D", "round trip"): "It compares tensors. Which tensor holds the rate?",
}


def loading_alarms(answer: Answer) -> str:
    said = answer()
    expect(isinstance(said, Mapping), f"Return a dict, letter to checks, not a {type(said).__name__}.")
    expect(set(said) == set("ABCD"), "The keys must be the four letters 'A', 'B', 'C' and 'D'.")
    for letter, rings in said.items():
        listed = isinstance(rings, list | tuple | set | frozenset) and all(each in _CHECKS for each in rings)
        expect(
            listed, f"{letter}: {rings!r} is no list of 'logits' and 'round trip'. [] means that none rings."
        )
    truth = _what_rings()
    for letter, check in itertools.product("ABCD", _CHECKS):
        claimed = check in said[letter]
        says = "rings" if claimed else "is silent"
        agrees = claimed == (check in truth[letter])
        expect(agrees, f"{letter}: you say that `{check}` {says}. {_THINK[letter, check]}")
    return "Measured just now, on four small models. What no check hears must be read in config.json."


def _what_rings() -> dict[str, set[str]]:
    config = GPTConfig(vocab_size=19, context_length=11, d_model=12, n_layers=2, n_heads=4)
    right = spread(GPT(config).eval())
    ids = torch.randint(0, 19, (3, 11))
    expected, published = right(ids), collect(right, GPT2)
    heads, no_value_bias = copy.deepcopy(right), copy.deepcopy(right)
    order = torch.arange(12).view(4, 3)[[0, 2, 1, 3]].flatten()
    for name, each in heads.named_parameters():
        if name.endswith("attention.out.weight"):
            each.data = each.data[:, order]
        elif re.search(r"attention\.(query|key|value)", name):
            each.data = each.data[order]
    for name, each in no_value_bias.named_parameters():
        if name.endswith("attention.value.bias"):
            each.data.zero_()
    others = GPT(replace(config, n_heads=2)).eval(), GPT(replace(config, dropout=0.1)).eval()
    for other in others:
        other.load_state_dict(right.state_dict())
    found = {}
    for letter, model in zip("ABCD", (heads, no_value_bias, *others), strict=True):
        again = collect(model, GPT2)
        differs = not all(torch.equal(each, again[name]) for name, each in published.items())
        off = bool((model(ids) - expected).abs().max() > 1e-4)
        found[letter] = {check for check, rings in zip(_CHECKS, (off, differs), strict=True) if rings}
    return found


def neox_to_gpt2(answer: Answer) -> str:
    for n_heads, head_dim in ((2, 5), (4, 3), (3, 2)):
        d = n_heads * head_dim
        parts, biases = torch.randn(3, d, d), torch.randn(3, d)  # of q, k and v; weights (out, in)
        weight, bias = (
            torch.stack([each.view(3, n_heads, head_dim, -1)[i, j] for j in range(n_heads) for i in range(3)])
            for each in (parts, biases)
        )
        weight, bias = weight.flatten(0, 1), bias.flatten()
        found = answer(weight.clone(), bias.clone(), n_heads)
        pair = isinstance(found, tuple | list) and len(found) == 2
        expect(
            pair and all(isinstance(each, Tensor) for each in found),
            "Return two tensors: c_attn.weight and c_attn.bias.",
        )
        _judge_weight(found[0], parts, weight, n_heads)
        expect(found[1].shape == (3 * d,), f"c_attn.bias has shape {tuple(found[1].shape)}, not (3 * {d},).")
        as_it_was = "still in GPT-NeoX's order" if torch.equal(found[1], bias) else "in another order"
        expect(torch.equal(found[1], biases.flatten()), f"The weight is right; the bias is {as_it_was}.")
    return "No shape would have told this order from a wrong one."


def _judge_weight(found: Tensor, parts: Tensor, weight: Tensor, n_heads: int) -> None:
    """parts: (3, d, d), the rows of q, k and v.  weight: (3 * d, d), the same rows as GPT-NeoX has them."""
    d = weight.shape[1]
    if torch.equal(found, parts.mT.flatten(0, 1)):
        raise Wrong("You put the turned parts below each other. On which side are the outputs of c_attn?")
    expect(found.shape != (3 * d, d), f"The weight is {3 * d} x {d}: one row per output. GPT-2 has columns.")
    expect(found.shape == (d, 3 * d), f"c_attn.weight has shape {tuple(found.shape)}, not ({d}, 3 * {d}).")
    if torch.equal(found, parts.flatten(0, 1).T):
        return
    by_three = weight.unflatten(0, (3, n_heads, -1))  # as if the parts came first, then the heads
    by_feature = parts.unflatten(1, (n_heads, -1)).transpose(1, 2)
    likely = [
        (weight.T, "the numbers are turned, but still in GPT-NeoX's order."),
        (
            by_three.transpose(0, 1).flatten(0, 2).T,
            "in the file, which changes slower, the head or the part?",
        ),
        (by_feature.flatten(0, 2).T, "a head owns neighbouring columns."),
        (weight.unflatten(0, (d, 3)).transpose(0, 1).flatten(0, 1).T, "not every third row makes a query."),
        (weight.reshape(d, -1), "`reshape` and `view` turn nothing."),
        (parts.reshape(d, -1), "`reshape` and `view` turn nothing."),
    ]
    likely += [
        (parts[list(order)].flatten(0, 1).T, "each third holds one kind, and another one than in GPT-2.")
        for order in itertools.permutations(range(3))
    ]
    mistakes = [mistake for wrong, mistake in likely if torch.equal(found, wrong)]
    raise Wrong("The shape is right, the columns are not: " + (mistakes or ["they are mixed up."])[0])


def repair_loader_stub(tensors: dict[str, Tensor], config: GPTConfig) -> GPT:
    with torch.device("meta"):
        model = GPT(config)
    model.to_empty(device="cpu")
    for name, tensor in tensors.items():
        model.get_parameter(name).data.copy_(tensor)
    model.head.weight = nn.Parameter(model.token_embedding.weight.clone())
    return model


def repair_loader(answer: Answer) -> str:
    base = GPTConfig(vocab_size=23, context_length=9, d_model=12, n_layers=2, n_heads=3)
    learned = replace(base, tie_weights=False)
    computed = replace(base, positions="sinusoidal"), replace(learned, positions="rotary")
    for config in (base, learned, *computed):
        right, tied = spread(GPT(config).eval()), config.tie_weights
        model = _loaded(answer, right)
        of = f"With positions={config.positions!r} and tie_weights={tied}"
        held = dict(itertools.chain(model.named_parameters(remove_duplicate=False), model.named_buffers()))
        hollow = [name for name, each in held.items() if each.is_meta]
        expect(not hollow, f"{of}: {', '.join(hollow[:2])} is still a shape without numbers.")
        embedding, head = model.token_embedding.weight, model.head.weight
        expect(tied or head is not embedding, f"{of}: the embedding stands in place of the file's own head.")
        if tied and head is not embedding:
            told = "equals the embedding but is another tensor" if _same(head, embedding) else "is empty"
            raise Wrong(f"{of}: the head {told}. The model learns from two tensors where it should have one.")
        wrong = [name for name, each in right.named_parameters() if not _same(each, held.get(name))]
        expect(not wrong, f"{of}: {', '.join(wrong[:2])} does not hold the file's numbers.")
        ids = torch.randint(0, 23, (2, 9))
        expect(
            torch.allclose(model(ids), right(ids), atol=1e-5),
            f"{of}: every parameter is right, and the logits are not. Some memory was given out and never "
            "written: what does a model hold that is no parameter?",
        )
    return "A checkpoint holds what was learned; what can be computed, the loader has to compute."


def _loaded(answer: Answer, right: GPT) -> GPT:
    """The answer's model; memory that it does not write holds NaN, so that no old numbers help by chance."""
    tensors = {name: each.detach().clone() for name, each in right.named_parameters()}
    before, generator = torch.are_deterministic_algorithms_enabled(), torch.random.get_rng_state()
    torch.use_deterministic_algorithms(True)
    try:
        model = answer(tensors, right.config)
    finally:
        torch.use_deterministic_algorithms(before)
    if not isinstance(model, GPT):
        raise Wrong(f"It returned a {type(model).__name__}, not a GPT.")
    undrawn = torch.equal(generator, torch.random.get_rng_state())
    expect(undrawn, "Initial values were drawn for weights that are replaced at once. Keep the meta device.")
    return model.eval()


def _same(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and one.shape == other.shape and torch.equal(one, other)


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
