"""What training costs on paper is what PyTorch counts, saves and holds."""

from __future__ import annotations

import math
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from labkit import GPT, GPTConfig
from labkit.analysis import (
    DEVICES,
    intensity,
    largest_batch,
    mfu,
    parameter_count,
    plan,
    roofline,
    training_flops,
    training_memory,
)
from labkit.config import MODEL_PRESETS
from tests.variants import CONTEXT, VARIANTS, VOCAB

BATCH = 5


def config_of(variant: str, **changes: Any) -> GPTConfig:
    sizes: dict[str, Any] = {"vocab_size": VOCAB, "context_length": CONTEXT, "d_model": 12, "n_layers": 3}
    return GPTConfig(**sizes | {"n_heads": 2} | VARIANTS[variant] | changes)


def model_of(config: GPTConfig, *, checkpointing: bool = False) -> tuple[GPT, Tensor]:
    torch.manual_seed(0)
    model = GPT(config)
    model.activation_checkpointing = checkpointing
    return model, torch.randint(config.vocab_size, (BATCH, config.context_length))


# Parameters and operations


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_counted_without_a_model(variant: str, activation: str) -> None:
    config = config_of(variant, d_ff=31, activation=activation)
    model = GPT(config)
    assert parameter_count(config) == model.num_parameters()
    inside = sum(each.numel() for each in [*model.blocks.parameters(), *model.norm.parameters()])
    assert parameter_count(config, embeddings=False) == inside


@pytest.mark.parametrize("name", MODEL_PRESETS)
def test_parameters_of_every_preset(name: str) -> None:
    config = GPTConfig.preset(name)
    with torch.device("meta"):
        model = GPT(config)
    assert parameter_count(config) == model.num_parameters()
    assert sum(training_flops(config).values()) == model.flops_per_token()


@pytest.mark.parametrize("variant", VARIANTS)
def test_operations_are_those_that_torch_counts(variant: str) -> None:
    config = config_of(variant, d_ff=31)
    model, ids = model_of(config)
    ids = ids[:, :7]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.loss(ids, ids).backward()
    assert sum(training_flops(config, 7).values()) * ids.numel() == counter.get_total_flops()
    assert sum(training_flops(config, 7).values()) == model.flops_per_token(7)


@pytest.mark.parametrize("variant", ["gpt2", "grouped", "llama"])
def test_each_part_of_the_operations_is_that_of_its_layer(variant: str) -> None:
    config = config_of(variant, d_ff=31)
    model, ids = model_of(config)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(ids).sum().backward()
    counted = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    parts = training_flops(config)
    attention = parts["attention projections"] + parts["attention scores and mixing"]
    layers = [f"GPT.blocks.{number}" for number in range(config.n_layers)]
    assert sum(counted[f"{layer}.attention"] for layer in layers) == attention * ids.numel()
    assert sum(counted[f"{layer}.mlp"] for layer in layers) == parts["feed-forward"] * ids.numel()
    assert counted["GPT.head"] == parts["output layer"] * ids.numel()


# Memory


def bytes_saved(model: GPT, ids: Tensor, precision: str) -> int:
    """What the graph from the ids to the output layer's input holds, weights and copies of them aside."""
    known = {each.untyped_storage().data_ptr() for each in [*model.parameters(), *model.buffers()]}
    matrices = {each.shape for each in model.parameters() if each.ndim == 2}
    matrices |= {shape[::-1] for shape in matrices}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        copy = precision != "fp32" and tensor.shape in matrices
        if not copy and tensor.untyped_storage().data_ptr() not in known:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    amp = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with saved_tensors_hooks(pack, lambda tensor: tensor), amp:
        x = model.embed(ids)
        for block in model.blocks:
            x = block(x)
        model.norm(x)
    return sum(each.untyped_storage().nbytes() for each in saved.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_activations_are_what_autograd_saves(variant: str, precision: Any) -> None:
    config = config_of(variant, d_ff=31)
    model, ids = model_of(config)
    counted = training_memory(config, BATCH, precision=precision)["activations"]
    assert counted == bytes_saved(model, ids, precision)


@pytest.mark.parametrize("rates", [{"dropout": 0.1}, {"attention_dropout": 0.1}])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_dropout_keeps_masks_and_on_a_cpu_the_attention_weights(
    rates: dict[str, float], precision: Any
) -> None:
    config = config_of("gpt2", d_ff=31, **rates)
    model, ids = model_of(config)
    counted = training_memory(config, BATCH, precision=precision, device="cpu")["activations"]
    exact = precision == "fp32" or "dropout" in rates
    assert counted == pytest.approx(bytes_saved(model, ids, precision), rel=0 if exact else 0.06)
    without = training_memory(config_of("gpt2", d_ff=31), BATCH, precision=precision)["activations"]
    masks = BATCH * CONTEXT * 12 * (1 + 2 * 3) if "dropout" in rates else 0
    on_a_gpu = training_memory(config, BATCH, precision=precision, device="cuda")["activations"]
    assert on_a_gpu == without + masks


class Held(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make, while they live."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.weights = {each.untyped_storage()._cdata for each in [*model.parameters(), *model.buffers()]}
        self.live: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
            if storage is not None and storage._cdata not in self.weights | self.live.keys():
                self.live[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.live.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self.live.values()))
        return out


@pytest.mark.parametrize(
    ("changes", "checkpointing", "precision"),
    [
        ({"n_layers": 5}, False, "fp32"),
        ({"n_layers": 5}, True, "fp32"),
        (VARIANTS["llama"] | {"d_model": 36}, False, "fp32"),
        ({"vocab_size": 17001}, False, "fp32"),  # logits all at once
        ({"vocab_size": 50001}, False, "fp32"),  # in chunks
        ({"vocab_size": 50001}, False, "bf16"),
        ({"vocab_size": 50001, "tie_weights": False}, True, "fp32"),
    ],
)
def test_a_step_holds_what_the_parts_say(
    changes: dict[str, Any], checkpointing: bool, precision: Any
) -> None:
    """Beside weights and moments: activations and loss; with checkpointing, gradients overlap with them."""
    sizes = {"vocab_size": 13, "context_length": 47, "d_model": 40, "n_layers": 3, "n_heads": 2}
    config = GPTConfig(**sizes | changes)
    model, ids = model_of(config, checkpointing=checkpointing)
    with Held(model) as held:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model.loss(ids, ids)
        loss.backward()
    parts = training_memory(
        config, BATCH, activation_checkpointing=checkpointing, device="cpu", precision=precision
    )
    copies = parts["weights"] - 4 * parameter_count(config)
    forward = parts["activations"] + parts["loss"] + copies
    overlap = parts["gradients"] if checkpointing else 0
    assert 0.95 * forward < held.peak < 1.06 * forward + overlap


def test_adamw_needs_sixteen_bytes_a_parameter_and_muon_fewer() -> None:
    config = GPTConfig.preset("gpt2")
    parts = training_memory(config, 3)
    always = parts["weights"] + parts["gradients"] + parts["optimizer"]
    assert always == 16 * parameter_count(config)
    matrices = 12 * 12 * 768**2
    muon = training_memory(config, 3, optimizer="muon")
    assert parts["optimizer"] - muon["optimizer"] == 4 * matrices
    half = training_memory(config, 3, precision="bf16")
    assert half["weights"] - parts["weights"] == 2 * (matrices + 50257 * 768)


def test_sharding_divides_what_does_not_compute() -> None:
    config = GPTConfig.preset("gpt2", n_layers=48)
    alone = training_memory(config, 2)
    ddp = training_memory(config, 2, devices=8)
    fsdp = training_memory(config, 2, devices=8, parallel="fsdp")
    assert ddp == alone | {"gradients": 2 * alone["gradients"]}
    assert fsdp["optimizer"] == alone["optimizer"] // 8
    block = 4 * parameter_count(config, embeddings=False) / 48
    outside = 4 * (50257 + 1024) * 768
    assert fsdp["weights"] == pytest.approx(alone["weights"] / 8 + outside + 2 * block, rel=1e-3)
    assert fsdp["gradients"] == pytest.approx(alone["gradients"] / 8 + outside + block, rel=1e-3)
    assert (fsdp["activations"], fsdp["loss"]) == (alone["activations"], alone["loss"])
    assert training_memory(config, 2, parallel="fsdp") == alone


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size=0, devices=1 must be at least 1"),
        ({"devices": 0}, "batch_size=3, devices=0 must be"),
        ({"parallel": "fsdp", "optimizer": "muon"}, "choose parallel='ddp'"),
    ],
)
def test_memory_of_what_cannot_be_trained_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        training_memory(GPTConfig.preset("nano"), **{"batch_size": 3} | settings)


def test_the_largest_batch_fits_and_the_next_does_not() -> None:
    def needed(batch_size: int) -> int:
        return 100 + 7 * batch_size

    for memory in range(90, 260):
        largest = largest_batch(memory, needed)
        assert needed(largest) <= memory < needed(largest + 1) or (largest == 0 and memory < 107)


def test_gpt2_trains_on_a_t4_and_gpt2_xl_does_not() -> None:
    room = 0.9 * DEVICES["T4"].memory

    def largest(name: str, **settings: Any) -> int:
        config = GPTConfig.preset(name)
        return largest_batch(
            room, lambda n: sum(training_memory(config, n, precision="fp16", **settings).values())
        )

    assert 4 <= largest("gpt2") < largest("gpt2", activation_checkpointing=True)
    assert largest("gpt2-xl", activation_checkpointing=True) == 0


# Time


def test_mfu_and_days_of_a_published_training() -> None:
    """PaLM 540B: 238,300 tokens a second on 6,144 chips of 275 TFLOP/s, 46.2 % (its section 4.1)."""
    per_token = 6 * 540.35e9 + 12 * 118 * 48 * 256 * 2048
    assert mfu(238_300, per_token, 6144 * 275e12) == pytest.approx(0.462, abs=0.002)


def test_a_plan_says_operations_days_and_bytes() -> None:
    config = GPTConfig.preset("gpt2-xl")
    found = plan(config, 20e9, peak_flops=989e12, mfu=0.4, devices=64, batch_size=3)
    per_token = sum(training_flops(config).values())
    assert found.flops == 20e9 * per_token
    assert found.days * 86400 * 64 * 0.4 * 989e12 == pytest.approx(found.flops)
    assert found.parameters == parameter_count(config)
    settings: dict[str, Any] = {"precision": "bf16", "devices": 64}
    assert found.memory == training_memory(config, 3, **settings)
    assert found.memory_sharded == training_memory(config, 3, parallel="fsdp", **settings)


@pytest.mark.parametrize("value", [0.0, 1.5, math.nan])
def test_a_plan_refuses_an_mfu_that_cannot_be(value: float) -> None:
    with pytest.raises(ValueError, match="must be above 0 and at most 1"):
        plan(GPTConfig.preset("nano"), 1e9, peak_flops=1e12, mfu=value, devices=1)


def test_intensity_is_operations_over_bytes() -> None:
    assert intensity(3, 5, 7) == 2 * 3 * 5 * 7 / (4 * (3 * 5 + 5 * 7 + 3 * 7))
    assert intensity(3, 5, 7, bytes_per_number=2) == 2 * intensity(3, 5, 7)


def test_below_the_ridge_memory_is_the_limit() -> None:
    assert roofline(2.0, 100.0, 30.0) == 60.0
    assert roofline(5.0, 100.0, 30.0) == 100.0
