"""The training loop, as a generator of typed events. It knows no screen and no disk."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from labkit.analysis import perplexity
from labkit.analysis.evaluate import summed_loss
from labkit.config import SampleConfig, TrainConfig
from labkit.device import (
    autocast,
    best_device,
    choose_precision,
    seeded,
    set_threads,
    training_threads,
    tune,
    warn_if_slow,
)
from labkit.generation import generate
from labkit.model import GPT
from labkit.text import Batches, SequenceDataset, ShuffledWindows, Tokenizer, TokenStream, WindowDataset
from labkit.text.batches import IGNORE, Ids
from labkit.training.optim import build_optimizer, check_shapes, freeze, scheduled_rate
from labkit.training.parallel import Ranks, whole

TrainingData = Ids | WindowDataset | SequenceDataset


class TrainingDivergedError(RuntimeError):
    """The loss or the gradient became infinite or not a number."""


@dataclass(frozen=True)
class Step:
    """One optimizer step has been taken. Loss in nats per token, before the step; tokens since the start."""

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int


@dataclass(frozen=True)
class Evaluation:
    """The held-out loss after `step` steps, in nats per token, and its perplexity."""

    step: int
    val_loss: float
    perplexity: float


@dataclass(frozen=True)
class Sample:
    """Text that the model wrote after `step` steps."""

    step: int
    prompt: str
    text: str


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint is due; the trainer is between two steps, so its state is whole."""

    step: int


@dataclass(frozen=True)
class End:
    """All steps are taken."""

    step: int


Event = Step | Evaluation | Sample | Checkpoint | End


class Trainer:
    """Trains a model on next-token prediction.

    train: (tokens,) whole numbers, of which random crops are taken (the `ids` of an EncodedText stay in their
    file); or windows (WindowDataset, SequenceDataset), each seen once per epoch.  val: ids or
    windows.  `events()` runs the loop: each `next` takes one step or gives one evaluation, sample or
    checkpoint, so pausing or stopping is not asking for the next event.
    tokenizer and prompt are needed only for samples during training.

    The batch of a step and its dropout depend on (config.seed, step) alone; evaluation and samples draw
    from generators of their own.  Where several processes have been joined (`launched`), each reads its
    rows of the same batches, and all give the same events.
    Raises ValueError for text too short for one window, for a batch that cannot be shared equally, or for
    samples asked for without a tokenizer or from a prompt that it cannot read.
    """

    def __init__(
        self,
        model: GPT,
        train: TrainingData,
        val: Ids | WindowDataset | SequenceDataset,
        config: TrainConfig,
        *,
        tokenizer: Tokenizer | None = None,
        prompt: str = "\n",
        device: str | None = None,
        source: dict[str, Any] | None = None,
    ) -> None:
        if config.sample_every and tokenizer is None:
            raise ValueError("Trainer: sample_every is set, so give tokenizer= to turn ids into text.")
        self.device = best_device(device)
        set_threads(config.threads or training_threads())
        self.precision = choose_precision(config.precision, self.device)
        warn_if_slow(self.precision, self.device)
        tune(self.device)
        self.config, self.tokenizer, self.prompt, self.source = config, tokenizer, prompt, source
        if config.sample_every and tokenizer:
            _encode_prompt(tokenizer, prompt)  # refused here rather than at the first sample

        self.ranks = Ranks()
        context = model.config.context_length
        self.data = _batches(train, context, config)
        _check_shares(self.data.batch_size, self.ranks.world)
        self.prefetcher = Prefetcher(self.data, self.device, self.ranks.rank, self.ranks.world)
        windows = val if isinstance(val, WindowDataset | SequenceDataset) else WindowDataset(val, context)
        count = config.eval_windows
        self.val_inputs, self.val_targets = next(windows.batches(count, limit=count))
        self.total_steps = config.total_steps(self.data.tokens_per_epoch, context)
        warmup = config.warmup_steps
        self.warmup_steps = min(100, self.total_steps // 20) if warmup is None else warmup

        self.model = model.to(self.device)
        self.model.activation_checkpointing = config.activation_checkpointing
        freeze(model, config.freeze)
        loss = self.ranks.wrap(model, config, self.precision)
        self.optimizer = build_optimizer(model, config)
        self._trained = [each for each in model.parameters() if each.requires_grad]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self._loss = torch.compile(loss) if config.compile else loss
        self.step = 0
        self.learning_rate_scale = 1.0
        """Multiplies the schedule from the next step on; may be changed while it trains."""
        self.pending = ["evaluation"]
        """What is still to come between this step and the next: evaluation, sample, checkpoint."""
        self.val_loss: float | None = None
        """Held-out loss at this step, once evaluated."""
        self.intact = True
        """False once something stopped it in the middle of a step, or of recording one."""

    def learning_rate(self, step: int) -> float:
        """The (AdamW) learning rate of a step: the schedule's, scaled; Muon's changes in proportion."""
        rate = scheduled_rate(self.config, step, total_steps=self.total_steps, warmup_steps=self.warmup_steps)
        return self.learning_rate_scale * rate

    def events(self) -> Iterator[Event]:
        """Train from the current step to the last, yielding what happens.

        An evaluation comes before the first step, every eval_every steps and after the last.  Raises
        TrainingDivergedError when loss or gradient is not finite; the model is left as before that step.
        """
        while True:
            while self.pending:
                event = self._make(self.pending[0])
                del self.pending[0]
                yield event
            if self.step == self.total_steps:
                break
            step = self._train_step()
            self.pending = self._due()
            yield step
        yield End(self.step)

    def _due(self) -> list[str]:
        last = self.step == self.total_steps
        config = self.config
        every = {
            "evaluation": (config.eval_every, True),
            "sample": (config.sample_every, config.sample_every > 0),
            "checkpoint": (config.checkpoint_every, True),
        }
        return [
            name
            for name, (steps, at_end) in every.items()
            if (steps > 0 and self.step % steps == 0) or (last and at_end)
        ]

    def _make(self, name: str) -> Event:
        if name == "evaluation":
            return self._evaluate()
        return self.sample() if name == "sample" else Checkpoint(self.step)

    def _train_step(self) -> Step:
        if not self.model.training:
            self.model.train()
        learning_rate = self.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * (group["peak"] / self.config.learning_rate)
        self.optimizer.zero_grad(set_to_none=True)
        summed = self._backward(self.prefetcher.batch(self.step))
        if self.step + 1 < self.total_steps:
            self.prefetcher.prepare(self.step + 1)
        loss = self.ranks.sum(summed.item()) / self.ranks.world
        self.scaler.unscale_(self.optimizer)  # type: ignore[arg-type]  # Combined is one in all it needs
        clip = self.config.grad_clip or math.inf
        grad_norm = whole(nn.utils.clip_grad_norm_(self._trained, clip)).item()
        if not math.isfinite(loss) or not (math.isfinite(grad_norm) or self._scale_can_fall()):
            raise TrainingDivergedError(self._divergence_message(loss, grad_norm, learning_rate))
        self.scaler.step(self.optimizer)  # type: ignore[arg-type]
        self.scaler.update()
        self.step, self.val_loss = self.step + 1, None
        return Step(self.step, loss, learning_rate, grad_norm, self.step * self.data.tokens_per_step)

    def _backward(self, batch: DeviceBatch) -> Tensor:
        """Sum the gradients of the mean loss over all targets, micro_batch_size sequences at a time.

        The gradients of all processes are averaged, so each counts its targets world times.
        """
        size = self.config.micro_batch_size or len(batch.inputs)
        world = self.ranks.world
        counts = [int((part != IGNORE).sum()) for part in batch.host_targets.split(size)]
        counted = self.ranks.sum(sum(counts))
        total = torch.zeros((), device=self.device)
        micro_batches = list(zip(batch.inputs.split(size), batch.targets.split(size), counts, strict=True))
        seed = self.config.seed * 1_000_003 + self.step + self.ranks.rank * 2_654_435_761
        with seeded(seed, self.device):  # dropout
            for number, (inputs, targets, count) in enumerate(micro_batches, start=1):
                share = world * count / counted if counted else 1.0
                if not share:
                    if world == 1:
                        continue
                    targets = inputs  # any: times 0, but every process takes every pass
                with self.ranks.gradient_sync(last=number == len(micro_batches)):
                    with autocast(self.device, self.precision):
                        loss = self._loss(inputs, targets) * share
                    self.scaler.scale(loss).backward()
                total += loss.detach()
        return total

    def _scale_can_fall(self) -> bool:
        """In fp16 a gradient that overflowed is skipped and the next one is scaled less."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > 2**-10

    def _divergence_message(self, loss: float, grad_norm: float, learning_rate: float) -> str:
        return (
            f"Training diverged at step {self.step + 1}: loss {loss}, gradient norm {grad_norm}, learning "
            f"rate {learning_rate:.2e}. The weights are those of step {self.step}. Try a learning rate of "
            f"{self.config.learning_rate / 3:.1e}, a longer warmup (now {self.warmup_steps} steps), "
            f"grad_clip=1.0 (now {self.config.grad_clip}), or look for bad values in your own layers."
        )

    def _evaluate(self) -> Evaluation:
        with autocast(self.device, self.precision):
            total, count = summed_loss(self.model, *self.ranks.rows(self.val_inputs, self.val_targets))
        self.val_loss = self.ranks.sum(total) / self.ranks.sum(count)
        return Evaluation(self.step, self.val_loss, perplexity(self.val_loss))

    def sample(self, seed: int | None = None) -> Sample:
        """Text that the model writes now; training goes on as if it had not been asked for.

        seed: of its own generator; without it the configuration's.  Raises ValueError without a tokenizer, or
        for a prompt that it cannot read.
        """
        if self.tokenizer is None:
            raise ValueError("Trainer: samples need tokenizer= to turn ids into text.")
        config = SampleConfig(max_new_tokens=self.config.sample_tokens)
        ids = _encode_prompt(self.tokenizer, self.prompt)
        with autocast(self.device, self.precision):
            ids = generate(self.model, ids, config, seed=self.config.seed if seed is None else seed).tolist()
        return Sample(self.step, self.prompt, self.tokenizer.decode(ids))

    def fingerprint(self) -> str:
        """A checksum of what is trained and evaluated on."""
        held_out = hashlib.sha256(self.val_inputs.numpy().tobytes() + self.val_targets.numpy().tobytes())
        return hashlib.sha256(f"{self.data.fingerprint()} {held_out.hexdigest()}".encode()).hexdigest()

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs besides the weights, the step and `pending`."""
        on_cuda = self.device.type == "cuda"
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "learning_rate_scale": self.learning_rate_scale,
            "generators": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state(self.device) if on_cuda else None,
            },
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`; rates and decays stay those of this trainer's configuration."""
        settings = [
            {key: value for key, value in group.items() if key not in ("params", "lr")}
            for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(state["optimizer"])
        check_shapes(self.optimizer)
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.learning_rate_scale = state.get("learning_rate_scale", 1.0)  # older checkpoints have none
        torch.set_rng_state(state["generators"]["cpu"])
        if self.device.type == "cuda" and state["generators"]["cuda"] is not None:
            torch.cuda.set_rng_state(state["generators"]["cuda"], self.device)


def _batches(train: TrainingData, context_length: int, config: TrainConfig) -> Batches:
    size = config.sequences_per_step(context_length)
    if isinstance(train, WindowDataset | SequenceDataset):
        if train.context_length != context_length:
            raise ValueError(
                f"Trainer: the windows are {train.context_length} tokens long, the model's context_length is "
                f"{context_length}."
            )
        return ShuffledWindows(train, size, config.seed)
    return TokenStream(train, context_length, size, config.seed)


def _check_shares(sequences: int, world: int) -> None:
    if sequences % world:
        nearest = max(1, round(sequences / world)) * world
        raise ValueError(
            f"Trainer: {world} processes cannot share {sequences} sequences per step equally. Choose a "
            f"batch_size that {world} divides, such as {nearest}."
        )


def _encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The ids that samples start from, checked before training rather than at the first sample."""
    try:
        ids = tokenizer.encode(prompt)
    except ValueError as error:
        raise ValueError(f"Trainer: samples cannot start from prompt={prompt!r}. {error}") from error
    if not ids:
        raise ValueError("Trainer: prompt is empty; samples need at least one character to start from.")
    return ids


class DeviceBatch(NamedTuple):
    """One process's rows of a batch, each (rows, context_length) int64."""

    inputs: Tensor
    targets: Tensor
    host_targets: Tensor
    """The targets in host memory, where they are counted without waiting for the GPU."""


class Prefetcher:
    """Batches by step.  On CUDA the next one can be prepared while a step computes.

    What was prepared is no state: a batch depends on its step alone, and one for another step is dropped.
    """

    def __init__(self, data: Batches, device: torch.device, rank: int = 0, world: int = 1) -> None:
        self.data, self.device, self.rank, self.world = data, device, rank, world
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ready: tuple[int, DeviceBatch] | None = None

    def batch(self, step: int) -> DeviceBatch:
        """The batch of a step, on the device; a CPU does not wait for its copy, the GPU does."""
        if self._copies is None:
            inputs, targets = self._pick(step)
            return DeviceBatch(inputs.to(self.device), targets.to(self.device), targets)
        if self._ready is None or self._ready[0] != step:
            self.prepare(step)
        assert self._ready is not None
        batch, self._ready = self._ready[1], None
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self._copies)
        for tensor in (batch.inputs, batch.targets):
            tensor.record_stream(computing)  # or a later copy could take its memory while it is read
        return batch

    def prepare(self, step: int) -> None:
        """On CUDA: pick the batch of a step and start to copy it, beside what the GPU computes."""
        if self._copies is None:
            return
        # Only from pinned memory does a copy run beside the program; PyTorch gives none of it away before.
        inputs, targets = (ids.pin_memory() for ids in self._pick(step))
        with torch.cuda.stream(self._copies):
            copies = inputs.to(self.device, non_blocking=True), targets.to(self.device, non_blocking=True)
        self._ready = step, DeviceBatch(*copies, targets)

    def _pick(self, step: int) -> tuple[Tensor, Tensor]:
        return self.data.batch(step, rank=self.rank, world=self.world)
