"""Check of the race of contexts, lesson 03's last exercise."""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor

from labkit.course.check import Answer, expect


def context_race(answer: Answer) -> str:
    vocab, steps, short, long = 7, 25, 1, 12
    train, held_out = _lagged(3000, vocab), _lagged(700, vocab)
    rows = _race(answer(train, held_out, vocab, (short, long), steps), short, long)
    shown, losses = ({context: row[part] for context, row in rows.items()} for part in (0, 1))
    expect(max(losses.values()) < steps, "In each pair the tokens shown come first, then the loss.")
    expect(
        shown[short] == shown[long],
        f"By your own account context {short} was shown {shown[short]:,.0f} tokens and context {long} "
        f"{shown[long]:,.0f}: the one that read more may be ahead for that alone.",
    )
    expect(
        shown[long] == 384 * steps,
        f"Each was shown {shown[long]:,.0f} tokens, and {steps} steps of 384 are {384 * steps:,}.",
    )
    blind = math.log(vocab)
    expect(
        max(losses.values()) < 1.25 * blind,
        f"{max(losses.values()):.2f} is far above ln {vocab} = {blind:.2f}, which a blind guess costs: is it "
        "a perplexity, or in bits?",
    )
    text = "On a text in which each token hangs on the one two places back,"
    expect(
        losses[short] > blind - 0.1,
        f"{text} a model that sees one token knows nothing. Yours got {losses[short]:.2f}, below "
        f"ln {vocab} = {blind:.2f}: does it see more than one?",
    )
    expect(
        losses[long] < losses[short] - 0.2,
        f"{text} more context did not help: are these the losses of models trained at the rate asked for?",
    )
    noise = torch.randint(vocab, (700,))
    unseen = _race(answer(train, noise, vocab, (long,), steps), long)[long][1]
    expect(
        unseen > blind - 0.1,
        f"On held-out ids that are pure noise you report {unseen:.2f}, and nobody gets below ln {vocab} = "
        f"{blind:.2f} there: is it the loss on the training text?",
    )
    alone = _race(answer(train, held_out, vocab, (long,), steps), long)[long][1]
    expect(
        abs(alone - losses[long]) < 5e-3,
        f"Context {long} gets {losses[long]:.3f} when it comes second and {alone:.3f} when it runs alone: "
        "does each model begin from the same seed?",
    )
    part = len(held_out) // 3  # with context 1 each token but the first is one window
    few = [
        _race(answer(train, ids, vocab, (short,), 2), short)[short][1]
        for ids in (held_out[: part + 1], held_out[part:], held_out)
    ]
    together = (part * few[0] + (len(held_out) - 1 - part) * few[1]) / (len(held_out) - 1)
    expect(
        abs(together - few[2]) < 1e-4,
        f"Two parts of a held-out text get {together:.5f} together, and the whole text {few[2]:.5f}: "
        "were all of its tokens judged, each as much as any other? Batches may differ in size.",
    )
    return "Mind one thing more: a short window has a larger share of places that have seen next to nothing."


def _lagged(length: int, vocab: int) -> Tensor:
    """Ids of which nine in ten repeat the one two places back; the others are drawn at random."""
    ids = torch.randint(vocab, (length,)).tolist()
    for place, repeats in enumerate((torch.rand(length) < 0.9).tolist()):
        if repeats and place > 1:
            ids[place] = ids[place - 2]
    return torch.tensor(ids)


def _race(rows: Any, *contexts: int) -> dict[int, tuple[float, float]]:
    expect(
        isinstance(rows, dict) and set(rows) == set(contexts),
        f"Asked for the contexts {contexts}, return a dict with just these as keys.",
    )
    for row in rows.values():
        pair = isinstance(row, tuple | list) and len(row) == 2 and all(map(is_number, row))
        expect(pair, "Each value must be two numbers: (tokens shown, held-out loss).")
    return {context: (float(shown), float(loss)) for context, (shown, loss) in rows.items()}


def is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
