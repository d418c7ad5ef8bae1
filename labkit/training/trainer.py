"""The training loop, as a generator of events. It knows no screen and no disk."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labkit.analysis import evaluate_loss, perplexity
from labkit.config import SampleConfig, TrainConfig
from labkit.device import best_device, set_threads
from labkit.generation import generate
from labkit.model import GPT
from labkit.text import Tokenizer, TokenStream, WindowDataset
from labkit.training.optimizer import build_optimizer
from labkit.training.schedule import warmup_cosine


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

    train_ids, val_ids: (tokens,) whole numbers.  `events()` runs the loop: each `next` takes one step or
    gives one evaluation, sample or checkpoint, so pausing or stopping is not asking for the next event.
    tokenizer and prompt are needed only for samples during training.

    The batch of a step and its dropout depend on (config.seed, step) alone; evaluation and samples draw
    from generators of their own.  Raises ValueError for text too short for one window, or for samples
    asked for without a tokenizer or from a prompt that it cannot read.
    """

    def __init__(
        self,
        model: GPT,
        train_ids: Tensor,
        val_ids: Tensor,
        config: TrainConfig,
        *,
        tokenizer: Tokenizer | None = None,
        prompt: str = "\n",
        device: str | None = None,
    ) -> None:
        if config.sample_every and tokenizer is None:
            raise ValueError("Trainer: sample_every is set, so give tokenizer= to turn ids into text.")
        self.device = best_device(device)
        set_threads(config.threads)
        self.model = model.to(self.device)
        self.config = config
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.prompt_ids = _encode_prompt(tokenizer, prompt) if config.sample_every and tokenizer else []
        self.optimizer = build_optimizer(model, config)
        context = model.config.context_length
        self.stream = TokenStream(train_ids, context, config.batch_size, seed=config.seed)
        count = config.eval_windows
        self.val_inputs, self.val_targets = next(WindowDataset(val_ids, context).batches(count, limit=count))
        self.total_steps = config.total_steps(len(train_ids), context)
        warmup = config.warmup_steps
        self.warmup_steps = min(100, self.total_steps // 20) if warmup is None else warmup
        self.step = 0

    def learning_rate(self, step: int) -> float:
        """The (AdamW) learning rate of a step, by the schedule; Muon's rises and falls in proportion."""
        peak, low = self.config.learning_rate, self.config.min_learning_rate
        return warmup_cosine(
            step,
            total_steps=self.total_steps,
            learning_rate=peak,
            min_learning_rate=peak / 10 if low is None else low,
            warmup_steps=min(self.warmup_steps, self.total_steps),
        )

    def events(self) -> Iterator[Event]:
        """Train from the current step to the last, yielding what happens.

        An evaluation comes before the first step, every eval_every steps and after the last.  Raises
        TrainingDivergedError when loss or gradient is not finite; the model is left as before that step.
        """
        if self.step == 0:
            yield self._evaluate()
        while self.step < self.total_steps:
            yield self._train_step()
            last = self.step == self.total_steps
            if last or self._due(self.config.eval_every):
                yield self._evaluate()
            if self._due(self.config.sample_every) or (last and self.config.sample_every):
                yield self._sample()
            if last or self._due(self.config.checkpoint_every):
                yield Checkpoint(self.step)
        yield End(self.step)

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _train_step(self) -> Step:
        self.model.train()
        learning_rate = self.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * (group["peak"] / self.config.learning_rate)
        inputs, targets = self.stream.batch(self.step)
        with self._seeded_dropout():
            loss = self.model.loss(inputs.to(self.device), targets.to(self.device))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clip = self.config.grad_clip or math.inf
        grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        loss_value, norm_value = loss.item(), grad_norm.item()
        if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
            raise TrainingDivergedError(self._divergence_message(loss_value, norm_value, learning_rate))
        self.optimizer.step()
        self.step += 1
        tokens = self.step * self.stream.tokens_per_step
        return Step(self.step, loss_value, learning_rate, norm_value, tokens)

    def _seeded_dropout(self) -> AbstractContextManager[None]:
        """Make dropout a function of (seed, step), and leave everyone else's random numbers alone."""
        if not (self.model.config.dropout or self.model.config.attention_dropout):
            return nullcontext()
        return _seeded(self.config.seed * 1_000_003 + self.step, self.device)

    def _divergence_message(self, loss: float, grad_norm: float, learning_rate: float) -> str:
        return (
            f"Training diverged at step {self.step + 1}: loss {loss}, gradient norm {grad_norm}, learning "
            f"rate {learning_rate:.2e}. The weights are those of step {self.step}. Try a learning rate of "
            f"{self.config.learning_rate / 3:.1e}, a longer warmup (now {self.warmup_steps} steps), "
            f"grad_clip=1.0 (now {self.config.grad_clip}), or look for bad values in your own layers."
        )

    def _evaluate(self) -> Evaluation:
        loss = evaluate_loss(self.model, self.val_inputs, self.val_targets)
        return Evaluation(self.step, loss, perplexity(loss))

    def _sample(self) -> Sample:
        assert self.tokenizer is not None
        config = SampleConfig(max_new_tokens=self.config.sample_tokens)
        ids = generate(self.model, self.prompt_ids, config, seed=self.config.seed)
        return Sample(self.step, self.prompt, self.tokenizer.decode(ids.tolist()))


def _encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The ids that samples start from, checked before training rather than at the first sample."""
    try:
        ids = tokenizer.encode(prompt)
    except ValueError as error:
        raise ValueError(f"Trainer: samples cannot start from prompt={prompt!r}. {error}") from error
    if not ids:
        raise ValueError("Trainer: prompt is empty; samples need at least one character to start from.")
    return ids


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed idle GPUs
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield
