"""Micro-batches, activation checkpointing, compilation and precision change memory and speed alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import labkit.device
import labkit.model.loss
from labkit import GPT, GPTConfig, TrainConfig
from labkit.device import choose_precision
from labkit.text import CharTokenizer, SequenceDataset, WindowDataset
from labkit.training import Evaluation, Sample, Step, Trainer, TrainingDivergedError

IDS = torch.arange(600) * 7 % 13
SHAPE: dict[str, Any] = {"vocab_size": 13, "context_length": 7, "d_model": 12, "n_layers": 3, "n_heads": 2}


def trainer(
    data: Any = IDS,
    shape: dict[str, Any] | None = None,
    tokenizer: CharTokenizer | None = None,
    **settings: Any,
) -> Trainer:
    torch.manual_seed(1)
    config = {"max_steps": 5, "batch_size": 12, "eval_windows": 5, "precision": "fp32"} | settings
    model = GPT(GPTConfig(**SHAPE | (shape or {})))
    prompt = "a" if tokenizer else ""
    return Trainer(model, data, IDS[:90], TrainConfig(**config), tokenizer=tokenizer, prompt=prompt)


def steps(some: Trainer) -> list[Step]:
    return [event for event in some.events() if isinstance(event, Step)]


def weights(some: Trainer) -> Tensor:
    return torch.cat([each.detach().flatten() for each in some.model.parameters()])


def gradients(some: Trainer) -> Tensor:
    some.model.train()
    some._backward(some.prefetcher.batch(0))
    return torch.cat([each.grad.flatten() for each in some.model.parameters() if each.grad is not None])


def padded_windows() -> SequenceDataset:
    """Sequences of 2 to 7 ids, so that micro-batches hold different numbers of real targets."""
    inputs, targets = WindowDataset(IDS, 7).gather(torch.arange(40))
    for row in range(40):
        targets[row, 1 + row % 7 :] = -100
    return SequenceDataset(inputs, targets)


@pytest.mark.parametrize("data", [IDS, padded_windows()], ids=["crops", "padded windows"])
@pytest.mark.parametrize("micro", [3, 5, 1])
def test_four_passes_of_three_equal_one_of_twelve(data: Any, micro: int) -> None:
    whole, parts = trainer(data), trainer(data, micro_batch_size=micro)
    torch.testing.assert_close(gradients(parts), gradients(whole), rtol=0, atol=1e-6)
    for one, two in zip(steps(whole), steps(parts), strict=True):
        assert one.loss == pytest.approx(two.loss, abs=1e-6)
        assert one.grad_norm == pytest.approx(two.grad_norm, abs=1e-6)
        assert one.tokens == two.tokens


def test_the_loss_of_padded_windows_is_the_mean_over_all_real_targets() -> None:
    some = trainer(padded_windows(), micro_batch_size=5)
    inputs, targets = some.data.batch(0)
    expected = some.model.train().loss(inputs, targets).item()
    assert steps(some)[0].loss == pytest.approx(expected, abs=1e-6)


def test_micro_batches_have_dropout_of_their_own() -> None:
    some = trainer(torch.zeros(600, dtype=torch.long), {"dropout": 0.5}, batch_size=2, micro_batch_size=1)
    losses = []
    some._loss = lambda ids, targets: losses.append(some.model.loss(ids, targets)) or losses[-1]  # type: ignore[func-returns-value]
    next(event for event in some.events() if isinstance(event, Step))
    assert losses[0].item() != losses[1].item()


def test_activation_checkpointing_gives_the_same_bits_with_dropout_on() -> None:
    plain = trainer(shape={"dropout": 0.3})
    again = trainer(shape={"dropout": 0.3}, activation_checkpointing=True)
    assert steps(plain) == steps(again)
    assert torch.equal(weights(plain), weights(again))


def test_activation_checkpointing_keeps_less(monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(some: Trainer) -> int:
        total = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        inputs, targets = some.data.batch(0)
        some.model.train()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            some.model.loss(inputs, targets)
        return total

    assert kept(trainer(activation_checkpointing=True)) < kept(trainer()) / 2


@pytest.mark.long
@pytest.mark.parametrize("small", [0, 10**6], ids=["chunked loss", "plain loss"])
def test_compiled_training_evaluates_and_samples_on_the_way_and_gives_the_same(
    small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labkit.model.loss, "SMALL", small)
    monkeypatch.setitem(labkit.model.loss.CHUNK, "cpu", 30 * 16)  # 30 of 84 rows
    torch.compiler.reset()
    tokenizer = CharTokenizer("abcdefghijklm")
    told = []
    for compiled in (False, True):
        some = trainer(compile=compiled, eval_every=2, sample_every=2, sample_tokens=9, tokenizer=tokenizer)
        told.append((list(some.events()), some.model.state_dict().keys()))
    (plain, names), (other, other_names) = told
    assert names == other_names, "a compiled model saves names of its own"
    assert [type(event) for event in plain] == [type(event) for event in other]
    for one, two in zip(plain, other, strict=True):
        if isinstance(one, Step):
            assert two.loss == pytest.approx(one.loss, abs=1e-5)
        if isinstance(one, Evaluation):
            assert two.val_loss == pytest.approx(one.val_loss, abs=1e-5)
        if isinstance(one, Sample):
            assert two.text == one.text


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_like_full_and_keeps_weights_in_float32(precision: str) -> None:
    full, half = trainer(max_steps=40), trainer(max_steps=40, precision=precision)
    one, two = steps(full), steps(half)
    assert two[-1].loss == pytest.approx(one[-1].loss, abs=0.03)
    assert two[-1].loss < two[0].loss - 0.1
    assert two[0].grad_norm != one[0].grad_norm, "nothing was computed in half precision"
    assert {each.dtype for each in half.model.parameters()} == {torch.float32}
    assert half.scaler.is_enabled() == (precision == "fp16")


def test_fp16_skips_a_step_whose_gradient_overflows_and_scales_less() -> None:
    some = trainer(precision="fp16", max_steps=3)
    some.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    before = weights(some)
    events = (event for event in some.events() if isinstance(event, Step))
    assert next(events).grad_norm == float("inf") or some.scaler.get_scale() < 2.0**60
    assert torch.equal(weights(some), before)
    assert some.scaler.get_scale() == 2.0**59


def test_fp16_gives_up_where_no_scale_helps() -> None:
    some = trainer(precision="fp16", max_steps=99)
    some.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**-9)
    for parameter in some.model.parameters():
        parameter.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(TrainingDivergedError):
        steps(some)


def test_the_scaler_is_restored() -> None:
    some, other = trainer(precision="fp16"), trainer(precision="fp16")
    some.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    steps(some)
    other.load_state(some.state())
    assert other.scaler.get_scale() == some.scaler.get_scale() == 2.0**12


@pytest.mark.parametrize(
    ("device", "capability", "chosen"),
    [
        ("cuda", (9, 0), "bf16"),
        ("cuda", (8, 0), "bf16"),
        ("cuda", (7, 5), "fp16"),
        ("cuda", (6, 1), "fp32"),
        ("cpu", None, "fp32"),
        ("mps", None, "fp32"),
    ],
)
def test_auto_reads_the_table(
    monkeypatch: pytest.MonkeyPatch, device: str, capability: Any, chosen: str
) -> None:
    monkeypatch.setattr(labkit.device.torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(labkit.device.torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert choose_precision("auto", torch.device(device)) == chosen
    assert choose_precision("fp32", torch.device(device)) == "fp32"
    assert choose_precision("bf16", torch.device(device)) == "bf16"


def test_windows_are_each_seen_once_per_epoch() -> None:
    windows = WindowDataset(IDS, 7, stride=3)
    some = trainer(windows, epochs=2, max_steps=None, batch_size=11)
    assert some.total_steps == -(-2 * len(windows) // 11)
    first = torch.cat([some.data.batch(step)[0] for step in range(len(windows))])[: len(windows)]
    every = windows.gather(torch.arange(len(windows)))[0]
    assert sorted(map(tuple, first.tolist())) == sorted(map(tuple, every.tolist()))
    assert not torch.equal(first, every)


@pytest.mark.parametrize("data", [IDS, WindowDataset(IDS, 7)], ids=["crops", "windows"])
def test_ranks_share_out_the_rows_of_one_batch(data: Any) -> None:
    batches = trainer(data, batch_size=10).data
    whole = batches.batch(4)
    parts = [batches.batch(4, rank=rank, world=3) for rank in range(3)]
    for rank, part in enumerate(parts):
        assert torch.equal(part[0], whole[0][rank::3])
        assert torch.equal(part[1], whole[1][rank::3])


def test_batch_tokens_counts_in_tokens() -> None:
    assert trainer(batch_tokens=35).data.batch_size == 5
    with pytest.raises(ValueError, match="batch_tokens=36 is no multiple of context_length=7"):
        trainer(batch_tokens=36)


def test_frozen_parameters_stay_and_the_rest_is_trained() -> None:
    some = trainer(shape={"tie_weights": False}, freeze=("token_embedding", "blocks.0"))
    before = {name: each.clone() for name, each in some.model.named_parameters()}
    steps(some)
    for name, each in some.model.named_parameters():
        kept = name.startswith(("token_embedding", "blocks.0"))
        assert torch.equal(each, before[name]) == kept, name
    with pytest.raises(ValueError, match=r"no parameter begins with 'embedding'\. They begin with blocks"):
        trainer(freeze=("embedding",))


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({"schedule": "constant", "warmup_steps": 2}, [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        (
            {"schedule": "wsd", "warmup_steps": 2, "decay_fraction": 0.4},
            [0.5, 1, 1, 1, 1, 1, 0.775, 0.55, 0.325, 0.1],
        ),
        (
            {"schedule": "wsd", "warmup_steps": 0, "min_learning_rate": 0.0, "decay_fraction": 0.2},
            [1] * 8 + [0.5, 0],
        ),
    ],
)  # fmt: skip
def test_schedules(settings: dict[str, Any], rates: list[float]) -> None:
    some = trainer(max_steps=10, learning_rate=1.0, **settings)
    assert [some.learning_rate(step) for step in range(10)] == pytest.approx(rates)
