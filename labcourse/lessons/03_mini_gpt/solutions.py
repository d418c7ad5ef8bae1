"""Solutions of lesson 03's exercises."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from labkit import GPT, GPTConfig, TrainConfig, Trainer
from labkit.analysis import evaluate_loss
from labkit.text import WindowDataset
from labkit.training import Step


def loaded_die() -> tuple[float, float, float]:
    """The loss is a mean of $-\\ln p$ over what is *thrown*; $p$ is what the *model* says.

    1. Half of the throws cost $\\ln 2$, half cost $\\ln 10$. The exponential of the mean is
       $\\sqrt{2 \\cdot 10} \\approx 4.47$: less than 6, because a loaded die is easier to guess.
    2. Every throw costs $\\ln 6$, whatever the die does.
    3. One throw in six costs $\\ln 2$, five in six cost $\\ln 10$: about 7.65. The model expects sixes that
       do not come.
    """
    six, other = -math.log(0.5), -math.log(0.1)
    knows = math.exp(0.5 * six + 0.5 * other)
    misled = math.exp(1 / 6 * six + 5 / 6 * other)
    return knows, 6.0, misled


def gpt_parameters(vocab_size: int, context_length: int, d_model: int, n_layers: int) -> int:
    """Go through `PlainGPT` and `PlainBlock` from top to bottom and write down every tensor.

    A linear layer from $a$ to $b$ features holds $a b + b$ numbers, a norm $2 d$. The output matrix is the
    token embedding, so it adds nothing. Heads do not appear: they only cut $d$ into pieces. For GPT-2's sizes
    the sum is 124,439,808.
    """
    d = d_model
    attention = 4 * (d * d + d)  # queries, keys, values, output
    mlp = (d * 4 * d + 4 * d) + (4 * d * d + d)  # up, down
    norms = 2 * (2 * d)
    tables = vocab_size * d + context_length * d
    return tables + n_layers * (attention + mlp + norms) + 2 * d


def gpt_batch(ids: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """`roll(1)` asks position $t$ for token $t - 1$, which its attention may look up: the loss goes to zero.

    `roll(-1)` turns the shift around, but the last position is still asked for a token of its own window, the
    first. So take one token more than the context and cut it twice: all but the last are the inputs, all but
    the first the targets.
    """
    places = starts[:, None] + torch.arange(context + 1)  # (batch, context + 1)
    windows = ids[places]
    return windows[:, :-1], windows[:, 1:]


def reheat(probabilities: Tensor, temperature: float) -> Tensor:
    """The logarithm of a softmax is its logits less one constant per row, and a softmax ignores constants.

    So `probabilities.log()` serves as logits: divide by the temperature, take the softmax. The logarithm of 0
    is $-\\infty$, which the softmax turns into 0 again. It is the same as raising each probability to the
    power $1/\\tau$ and dividing by the sum.
    """
    return (probabilities.log() / temperature).softmax(dim=-1)


def context_race(
    train_ids: Tensor, val_ids: Tensor, vocab_size: int, contexts: Sequence[int], steps: int
) -> dict[int, tuple[int, float]]:
    """What is held fixed: tokens per step (so the batch shrinks as the context grows), seed, shape, rate.

    Each model is judged on all held-out tokens, by windows of its own context. The events of the trainer tell
    how many tokens were really shown.

    On the plays, after 300 steps, a context of 4 came out best here and 64 worst: its 64 learned position
    vectors get six lessons a step each, those of context 4 get 96. With `positions="rotary"`, where no place
    has anything to learn, 64 was best and 1 worst.
    """
    results = {}
    for context in contexts:
        torch.manual_seed(0)
        config = GPTConfig(vocab_size=vocab_size, context_length=context, d_model=32, n_layers=1, n_heads=4)
        model = GPT(config)
        settings = TrainConfig(max_steps=steps, batch_size=384 // context, learning_rate=1e-2, eval_every=0)
        events = list(Trainer(model, train_ids, val_ids, settings).events())
        shown = [event.tokens for event in events if isinstance(event, Step)][-1]
        windows = WindowDataset(val_ids, context)
        inputs, targets = next(windows.batches(len(windows)))
        results[context] = (shown, evaluate_loss(model, inputs, targets))
    return results
