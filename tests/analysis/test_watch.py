"""Statistics of layers while training: right and harmless."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from labkit import GPT, GPTConfig, TrainConfig
from labkit.analysis import token_losses, watch_layers
from labkit.training import End, Step, Trainer, fit
from tests.variants import VARIANTS

VOCAB = 13
IDS = torch.randint(VOCAB, (600,), generator=torch.Generator().manual_seed(3))


def trainer(
    variant: str = "gpt2", dropout: float = 0.2, shape: dict[str, Any] | None = None, **train: Any
) -> Trainer:
    """9 steps of 5 sequences, taken 3 and 2 at a time."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "context_length": 7, "d_model": 12, "n_layers": 3, "n_heads": 2, "d_ff": 20}
    model = GPT(GPTConfig(**sizes | VARIANTS[variant] | {"dropout": dropout} | (shape or {})))
    config: dict[str, Any] = {
        "max_steps": 9,
        "batch_size": 5,
        "micro_batch_size": 3,
        "eval_windows": 4,
        "threads": 1,
    }
    return Trainer(model, IDS[:500], IDS[500:], TrainConfig(**config | train))


def hooks_on(model: nn.Module) -> int:
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules())


def root_mean_square(*tensors: Tensor) -> float:
    numbers = torch.cat([each.detach().double().flatten() for each in tensors])
    return float(numbers.square().mean().sqrt())


# The training stays what it is


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize(
    ("variant", "settings"),
    [
        ("gpt2", {}),
        ("llama", {"grad_clip": 0.05}),
        ("untied, exact gelu", {"activation_checkpointing": True}),
        ("grouped", {"optimizer": "muon", "eval_every": 2}),
    ],
)
def test_a_watched_training_is_the_same_bit_for_bit(
    variant: str, settings: dict[str, Any], every: int
) -> None:
    plain, watched = trainer(variant, **settings), trainer(variant, **settings)
    events: tuple[list[Any], list[Any]] = ([], [])
    fit(plain, progress=False, callbacks=[events[0].append])
    with watch_layers(watched.model, every=every) as watch:
        fit(watched, progress=False, callbacks=[watch, events[1].append])
    assert events[0] == events[1]
    for mine, theirs in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert watch.rows


def test_the_generator_is_not_touched() -> None:
    states = []
    for watching in (False, True):
        torch.manual_seed(11)
        chosen = trainer()
        torch.manual_seed(11)
        fit(chosen, progress=False, callbacks=[watch_layers(chosen.model, every=2)] if watching else [])
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("every", [1, 2, 3, 5, 10])
def test_hooks_are_on_only_while_a_watched_step_is_taken(every: int) -> None:
    chosen = trainer()
    before = hooks_on(chosen.model)
    watch = watch_layers(chosen.model, every=every)
    seen: dict[int, int] = {}

    def look(module: nn.Module, args: Any, output: Tensor) -> None:
        if module.training:
            seen[chosen.step + 1] = hooks_on(chosen.model) - before - 1

    handle = chosen.model.blocks[1].norm1.register_forward_hook(look)
    fit(chosen, progress=False, callbacks=[watch])
    handle.remove()
    due = {1, *range(every, 10, every)}
    assert {step for step, count in seen.items() if count} == due
    assert sorted(set(watch.table()["step"])) == sorted(due)
    assert hooks_on(chosen.model) == before


def test_hooks_are_gone_after_an_error() -> None:
    chosen = trainer()

    def fail() -> None:
        with watch_layers(chosen.model):
            assert hooks_on(chosen.model) > 0
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert hooks_on(chosen.model) == 0
    with pytest.raises(ValueError, match="every=0 must be at least 1"):
        watch_layers(chosen.model, every=0)


# The numbers


@pytest.mark.parametrize("variant", ["gpt2", "llama", "untied, exact gelu", "no positions"])
@pytest.mark.parametrize("grad_clip", [0.0, 0.01])
def test_numbers_are_those_of_the_batch_and_of_gradients_before_clipping(
    variant: str, grad_clip: float
) -> None:
    chosen = trainer(variant, dropout=0.0, max_steps=1, grad_clip=grad_clip)
    torch.manual_seed(0)
    reference = GPT(chosen.model.config)
    reference.load_state_dict(chosen.model.state_dict())
    inputs, targets = chosen.data.batch(0)
    kept: dict[str, Tensor] = {}
    for name, module in reference.named_modules():
        module.register_forward_hook(lambda module, args, out, name=name: kept.__setitem__(name, out))
        module.register_forward_pre_hook(
            lambda module, args, name=name: kept.__setitem__(f"into {name}", args[0])
        )
    reference.loss(inputs, targets).backward()
    with watch_layers(chosen.model, every=1, dead_below=0.03) as watch:
        fit(chosen, progress=False, callbacks=[watch])
    table = watch.table().set_index("layer")
    tied = reference.config.tie_weights
    assert list(table.index) == ["embedding", "block 0", "block 1", "block 2", "norm"] + ["head"] * (not tied)
    assert table.loc["embedding", "activation_rms"] == pytest.approx(
        root_mean_square(kept["dropout"]), rel=1e-5
    )
    assert table.loc["norm", "activation_rms"] == pytest.approx(root_mean_square(kept["norm"]), rel=1e-5)
    for number in range(3):
        row, name = table.loc[f"block {number}"], f"blocks.{number}"
        assert row["activation_rms"] == pytest.approx(root_mean_square(kept[name]), rel=1e-5)
        assert row["attention_rms"] == pytest.approx(root_mean_square(kept[f"{name}.attention"]), rel=1e-5)
        assert row["mlp_rms"] == pytest.approx(root_mean_square(kept[f"{name}.mlp"]), rel=1e-5)
        peaks = kept[f"into {name}.mlp.down"].abs().flatten(0, -2).amax(0)
        assert row["dead_share"] == pytest.approx((peaks < 0.03).double().mean().item())
    if variant == "llama":
        assert table["dead_share"].max() > 0  # else nothing was compared
    modules: dict[str, list[nn.Module]] = {"embedding": [reference.token_embedding], "norm": [reference.norm]}
    modules["embedding"] += [reference.positions] if reference.positions else []
    modules |= {f"block {number}": [block] for number, block in enumerate(reference.blocks)}
    modules |= {} if tied else {"head": [reference.head]}
    for layer, some in modules.items():
        parameters = [each for module in some for each in module.parameters()]
        expected = root_mean_square(*(each.grad for each in parameters if each.grad is not None))
        assert table.loc[layer, "gradient_rms"] == pytest.approx(expected, rel=1e-4)
    trained = [*chosen.model.blocks[2].parameters()]
    assert table.loc["block 2", "weight_rms"] == pytest.approx(root_mean_square(*trained), rel=1e-5)
    ratio = table["gradient_rms"] / table["weight_rms"]
    assert table["gradient_to_weight"].tolist() == pytest.approx(ratio.tolist())


def test_evaluations_and_samples_in_between_do_not_count() -> None:
    tables = []
    for eval_every, looks in ((0, False), (1, False), (0, True)):
        chosen = trainer(eval_every=eval_every)

        def look(event: Any, model: GPT = chosen.model, looks: bool = looks) -> None:
            if looks:
                token_losses(model, IDS[None, :7])

        with watch_layers(chosen.model, every=2) as watch:
            fit(chosen, progress=False, callbacks=[watch, look])
        tables.append(watch.table())
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])


def test_a_training_that_goes_on_is_watched_from_its_first_step_here() -> None:
    chosen = trainer(eval_every=0)
    events = chosen.events()
    while chosen.step < 4:
        next(events)
    with watch_layers(chosen.model, every=5) as watch:
        for event in events:
            watch(event)
    assert sorted(set(watch.table()["step"])) == [5]
    with watch_layers(chosen.model, every=5) as watch:
        watch(End(9))
    assert hooks_on(chosen.model) == 0


def test_frozen_layers_have_no_gradient() -> None:
    chosen = trainer("untied, exact gelu", freeze=("token_embedding", "positions", "blocks.1"), max_steps=1)
    with watch_layers(chosen.model) as watch:
        fit(chosen, progress=False, callbacks=[watch])
    gradients = watch.table().set_index("layer")["gradient_rms"]
    assert gradients.isna().to_dict() == {
        "embedding": True, "block 0": False, "block 1": True, "block 2": False, "norm": False, "head": False,
    }  # fmt: skip


def test_a_step_that_fp16_skipped_has_no_gradient() -> None:
    model = trainer().model.train()
    watch = watch_layers(model)
    model.loss(IDS[None, :7], IDS[None, 1:8]).backward()
    watch(Step(1, 2.0, 1e-3, math.inf, 7))
    assert watch.table()["gradient_rms"].isna().all()
    assert watch.table()["activation_rms"].notna().all()


# Dead units


@pytest.mark.parametrize("variant", ["gpt2", "llama"])
def test_dead_units_are_counted(variant: str) -> None:
    """Units whose input is far below 0 for every token; 17 or 20 units in all."""
    chosen = trainer(variant, max_steps=1, shape={"bias": True})
    for block, dead in ((chosen.model.blocks[0], 3), (chosen.model.blocks[2], 12)):
        into = block.mlp.up if block.mlp.gate is None else block.mlp.gate
        into.weight.data[:dead] = 0
        into.bias.data[:dead] = -30
    for block in chosen.model.blocks:
        for linear in (block.mlp.up, block.mlp.gate):
            if linear is not None:
                linear.weight.data *= 20  # the others are alive beyond doubt
    with watch_layers(chosen.model) as watch:
        fit(chosen, progress=False, callbacks=[watch])
    shares = watch.table().set_index("layer")["dead_share"]
    units = chosen.model.config.ff_dim
    assert shares[["block 0", "block 1", "block 2"]].tolist() == pytest.approx([3 / units, 0, 12 / units])
    assert shares[["embedding", "norm"]].isna().all()


def test_a_unit_that_one_token_moves_is_not_dead() -> None:
    model = trainer(dropout=0.0).model.train()
    up = model.blocks[0].mlp.up
    up.weight.data[:] = 0
    up.bias.data[:] = -30
    rare = 5
    normed: list[Tensor] = []
    model.blocks[0].norm2.register_forward_hook(lambda module, args, out: normed.append(out.detach()))
    ids = IDS[None, :7].clone()
    ids[ids == rare] = 6
    ids[0, 4] = rare
    model(ids)
    up.weight.data[0] = (
        30.004 * normed[0][0, 4] / normed[0][0, 4].square().sum()
    )  # for that token 0.004 more than 30
    with watch_layers(model) as watch:
        model.loss(ids, ids).backward()
        watch(Step(1, 2.0, 1e-3, 1.0, 7))
    assert watch.table().set_index("layer").loc["block 0", "dead_share"] == pytest.approx(19 / 20)


def test_any_event_with_these_fields_will_do() -> None:
    model = trainer().model.train()
    with watch_layers(model, every=3) as watch:
        for step in range(1, 7):
            model.loss(IDS[None, :7], IDS[None, 1:8]).backward()
            watch(SimpleNamespace(step=step, grad_norm=1.0))
        watch(End(6))
    assert sorted(set(watch.table()["step"])) == [1, 3, 6]
