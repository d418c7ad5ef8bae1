"""What training costs, counted by hand: operations, bytes, time and devices."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from labkit.config import GPTConfig, Optimizer, Parallel
from labkit.model.loss import CHUNK, SMALL

FULL, HALF, IDS = 4, 2, 8
"""Bytes of a number in float32, in bfloat16 or float16, and of a token's id."""


@dataclass(frozen=True)
class Device:
    """The published limits of one accelerator, with dense matrices (no sparsity) in half precision."""

    memory: float
    """Bytes."""
    peak_flops: float
    """Floating-point operations a second in bfloat16; the T4 has float16 only."""
    bandwidth: float
    """Bytes a second between its memory and its cores."""


DEVICES = {
    "T4": Device(16e9, 65e12, 320e9),
    "A100": Device(80e9, 312e12, 2039e9),
    "H100": Device(80e9, 989e12, 3350e9),
    "H200": Device(141e9, 989e12, 4800e9),
}
"""Source: NVIDIA's data sheets of the T4 (2019), A100 80 GB SXM (2021), H100 SXM (2023; 1,979 TFLOP/s with
sparsity, half of it without) and H200 SXM (2024)."""


def parameter_count(config: GPTConfig, *, embeddings: bool = True) -> int:
    """Trained numbers of a model, without building it; a tied head counts once.

    embeddings=False leaves out token and position embeddings and the output layer: the N of Kaplan et al.
    """
    d, gates = config.d_model, int(config.activation == "swiglu")
    norm = d * (2 if config.norm == "layernorm" and config.bias else 1)
    biases = config.qkv_bias * (d + 2 * _kv(config)) + config.bias * (2 * d + (1 + gates) * config.ff_dim)
    total = config.n_layers * (_attention(config) + _feed_forward(config) + biases + 2 * norm) + norm
    if embeddings:
        total += config.vocab_size * d * (1 if config.tie_weights else 2)
        total += config.context_length * d * (config.positions == "learned")
    return total


def training_flops(config: GPTConfig, seq: int | None = None) -> dict[str, int]:
    """Floating-point operations to train on one token, by part; their sum is GPT.flops_per_token(seq).

    A weight that multiplies costs 2 operations in the forward pass (one product, one sum) and 4 in the
    backward pass (for the gradient of its input and its own): 6 * rows * columns per matrix. In attention
    each of seq positions costs 12 * d_model per layer: 2 * d_model each for its score and for mixing its
    value, three times over. The full square is counted, though the mask makes half of it needless.
    seq: tokens per sequence, context_length when not given.
    Source: Kaplan et al. (2020), section 2.1; Chowdhery et al. (2022), appendix B.
    """
    seq = config.context_length if seq is None else seq
    return {
        "attention projections": 6 * config.n_layers * _attention(config),
        "attention scores and mixing": 12 * config.n_layers * config.d_model * seq,
        "feed-forward": 6 * config.n_layers * _feed_forward(config),
        "output layer": 6 * config.vocab_size * config.d_model,
    }


def training_memory(
    config: GPTConfig,
    batch_size: int,
    *,
    optimizer: Optimizer = "adamw",
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    activation_checkpointing: bool = False,
    devices: int = 1,
    parallel: Parallel = "ddp",
    device: Literal["cpu", "cuda"] = "cuda",
) -> dict[str, int]:
    """Bytes that training holds on each device, by part.

    batch_size: sequences of context_length that one device reads at once (TrainConfig.micro_batch_size).

    weights       4 a parameter; in half precision 2 more for each that multiplies: the copy it is cast to.
    gradients     4 a parameter; with ddp on several devices 4 more: the buckets they are averaged in.
    optimizer     AdamW 8 a parameter (two moments): 16 with weights and gradients. Muon 4 for the blocks'
                  matrices, which have one momentum.
    activations   what the forward pass keeps for the backward pass. Per token and layer, in float32 and with
                  layer norm and GELU, 4 * (6 d_model + 2 n_kv_heads * head_dim + 2 d_ff + n_heads + 4): two
                  sums of the residual stream and their norms, query and mixed values; key and value; the
                  hidden features before and after GELU; a logarithm per head; mean and deviation of two
                  norms. No seq**2: scaled_dot_product_attention computes the scores again. With activation
                  checkpointing, each block's input, and all of one block.
    loss          12 a logit, with its probability and gradient. Above 2**22 logits, in chunks: 8 a logit of a
                  chunk, or 10 in half precision, and the output layer's gradient, which the forward pass
                  computes. In either case that layer's input and its gradient.

    All of it is held at the end of a forward pass when gradients of an earlier one are there; a step of one
    pass has none yet, and stays below the sum.
    dropout       part of the activations: a mask, one byte a feature on a GPU and a whole number on a CPU. In
                  attention a CPU keeps 12 bytes a score (14 in half precision), a GPU none.

    fsdp divides weights, gradients and moments by the devices; embeddings and head and two blocks are whole
    while they compute. Not counted: what an operation or the optimizer's step needs for a moment, what
    allocator and driver take: leave a tenth of a device free.
    Raises ValueError for batch_size or devices below 1, and for Muon with fsdp, as training does.
    Source: Korthikanti et al. (2022), section 4, for another block; Rajbhandari et al. (2020), section 3.
    """
    if batch_size < 1 or devices < 1:
        raise ValueError(f"training_memory: batch_size={batch_size}, devices={devices} must be at least 1.")
    if parallel == "fsdp" and optimizer == "muon":
        raise ValueError("training_memory: optimizer='muon' needs whole matrices; choose parallel='ddp'.")
    count, head = parameter_count(config), config.vocab_size * config.d_model
    matrices = config.n_layers * (_attention(config) + _feed_forward(config))
    weights = FULL * count
    gradients = weights * (2 if devices > 1 and parallel == "ddp" else 1)
    moments = 2 * weights - (FULL * matrices if optimizer == "muon" else 0)
    if devices > 1 and parallel == "fsdp":
        block = FULL * parameter_count(config, embeddings=False) // config.n_layers
        outside = weights - config.n_layers * block
        weights, gradients, moments = (each // devices for each in (weights, gradients, moments))
        weights, gradients = weights + outside + 2 * block, gradients + outside + block
    half = precision != "fp32"
    weights += half * HALF * (matrices + head)
    tokens, stream = batch_size * config.context_length, FULL * config.d_model
    norm, block = _kept(config, half)
    if config.dropout:
        stream_mask, block_mask = (FULL, HALF if half else FULL) if device == "cpu" else (1, 1)
        norm += stream_mask * config.d_model
        block += 2 * block_mask * config.d_model
    if config.attention_dropout and device == "cpu":
        block += config.n_heads * ((14 if half else 12) * config.context_length - FULL)
    inputs = config.n_layers - 1 if activation_checkpointing else 0
    logits = tokens * config.vocab_size
    loss = 3 * FULL * logits
    if logits > SMALL:
        chunk = logits // -(-logits // CHUNK[device])
        loss = (10 if half else 8) * chunk + FULL * head
    return {
        "weights": weights,
        "gradients": gradients,
        "optimizer": moments,
        "activations": tokens * (inputs * stream + (config.n_layers - inputs) * block + norm + IDS),
        "loss": loss + tokens * 2 * stream,
    }


def largest_batch(memory: float, needed: Callable[[int], int]) -> int:
    """The largest batch size for which needed(batch_size) is at most memory, 0 when not even 1 is.

    Example: largest_batch(0.9 * DEVICES["T4"].memory, lambda n: sum(training_memory(config, n).values())).
    """
    low, high = 0, 1
    while needed(high) <= memory:
        low, high = high, 2 * high
    return low + bisect_right(range(low + 1, high), memory, key=needed)


def mfu(tokens_per_second: float, flops_per_token: float, peak_flops: float) -> float:
    """Model FLOPs utilisation: the part of the peak that the model's own operations make up.

    flops_per_token: of `training_flops` or GPT.flops_per_token, whatever was computed twice to save memory.
    peak_flops: of all devices together, for the precision in use and without sparsity.
    Source: Chowdhery et al. (2022), section 4.1 and appendix B.
    """
    return tokens_per_second * flops_per_token / peak_flops


@dataclass(frozen=True)
class TrainingPlan:
    """What a training takes, on paper."""

    parameters: int
    tokens: float
    flops: float
    """Operations of the whole training."""
    days: float
    memory: dict[str, int]
    """Bytes per device when each holds the whole model (ddp), by part."""
    memory_sharded: dict[str, int]
    """The same with weights, gradients and moments split among the devices (fsdp)."""


def plan(
    config: GPTConfig,
    tokens: float,
    *,
    peak_flops: float,
    mfu: float,
    devices: int,
    batch_size: int = 1,
    activation_checkpointing: bool = False,
) -> TrainingPlan:
    """Operations, days and bytes per device to train a model with AdamW in bfloat16 on many devices.

    tokens: how many to read; 20 per parameter spends a given number of operations best (Hoffmann et al.,
    2022, table 3).  peak_flops: of one device.  mfu: the part of it that is reached, 0.3 to 0.5 where it is
    done well.  batch_size: sequences that a device reads at once.
    flops = tokens * operations per token; days = flops / (devices * peak_flops * mfu) / 86,400.
    Raises ValueError for an mfu outside (0, 1].
    """
    if not 0 < mfu <= 1:
        raise ValueError(f"plan: mfu={mfu} must be above 0 and at most 1; 0.4 is a good value.")
    flops = tokens * sum(training_flops(config).values())
    memory, sharded = (
        training_memory(
            config,
            batch_size,
            precision="bf16",
            activation_checkpointing=activation_checkpointing,
            devices=devices,
            parallel=parallel,
        )
        for parallel in ("ddp", "fsdp")
    )
    days = flops / (devices * peak_flops * mfu) / 86_400
    return TrainingPlan(parameter_count(config), tokens, flops, days, memory, sharded)


def intensity(rows: int, inner: int, columns: int, bytes_per_number: int = 4) -> float:
    """Operations per byte of a product (rows, inner) @ (inner, columns), each number moved once.

    2 * rows * inner * columns / (bytes_per_number * (rows * inner + inner * columns + rows * columns)).
    Source: Williams, Waterman & Patterson (2009), "Roofline".
    """
    moved = rows * inner + inner * columns + rows * columns
    return 2 * rows * inner * columns / (bytes_per_number * moved)


def roofline(intensity: float, peak_flops: float, bandwidth: float) -> float:
    """Operations a second that can be reached at most: bandwidth (bytes a second) * intensity, or the peak.

    Below peak_flops / bandwidth operations per byte, memory is the limit.
    Source: Williams, Waterman & Patterson (2009).
    """
    return min(peak_flops, intensity * bandwidth)


def _kv(config: GPTConfig) -> int:
    return config.kv_heads * config.head_dim


def _attention(config: GPTConfig) -> int:
    """Weights that multiply in an attention layer: those of queries and output, of keys and values."""
    return 2 * config.d_model * (config.d_model + _kv(config))


def _feed_forward(config: GPTConfig) -> int:
    return (3 if config.activation == "swiglu" else 2) * config.d_model * config.ff_dim


def _kept(config: GPTConfig, half: bool) -> tuple[int, int]:
    """Bytes per token that the forward pass of a norm keeps, and that of a block."""
    d, gated = config.d_model, config.activation == "swiglu"
    size = HALF if half else FULL
    # Input and statistics; RMS norm keeps the normalised input too.
    norm = FULL * (d + 2) if config.norm == "layernorm" else FULL * (2 * d + 1)
    # Under autocast a norm's output is cast for each layer that reads it, and each keeps its own copy.
    readers = 4 + gated if half else 2
    attention = size * (2 * d + 2 * _kv(config)) + FULL * config.n_heads
    hidden = size * (4 if gated else 2) * config.ff_dim
    return norm, 2 * norm + size * readers * d + attention + hidden
