"""What a training run can say: typed events, and the error that ends one."""

from __future__ import annotations

from dataclasses import dataclass


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
