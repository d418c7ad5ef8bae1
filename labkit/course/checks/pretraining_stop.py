"""The check of lesson 04's exercise on early stopping."""

from __future__ import annotations

from labkit.course.check import Answer, expect

CURVES = {
    "5.1 4.4 4.0 4.2 4.5 4.6 5.2 4.9": (2, (20, 40)),
    "5.0 4.0 4.1 3.9 4.0 3.8 3.9 4.0": (2, (50, 70)),
    "5.0 4.0 4.5 4.2 4.6 4.3 4.7 4.4": (3, (10, 40)),
    "5.0 4.0 4.0 4.0 4.1 4.2 4.2 4.3": (2, (10, 30)),
    "5.0 4.0 4.5 4.6 4.7 4.2 3.0 2.9": (3, (10, 40)),
    "5.0 4.6 4.3 4.1 4.0 3.9 3.8 3.7": (2, (70, 70)),
    "5.0 4.8 4.6 4.4 4.2 4.0 4.1 4.2": (3, (50, 70)),
    "10.9 10.7 10.8 10.9 10.6 10.5 10.9 10.9": (2, (10, 30)),
}
"""Held-out losses every 10 steps: patience, and the right answer."""
LEARNT = (5.0, 4.0, 3.0, 2.0, 2.1, 0.8, 0.6, 0.4)
"""The training loss, which is noisy, too."""
MISTAKES: tuple[dict[str, str], ...] = (
    {
        "best None": "How low must a loss be to be the best one so far, when it is the first?",
        "best 70": "Step 70 has the lowest training loss. Who would notice overfitting by that?",
        "best 60": "There the gap is widest. A gap also grows while both losses fall.",
        "best 0": "There the gap is narrowest. It grows as soon as the model learns, while both losses fall.",
        "best 40": "When you know that it has turned, the best weights lie behind you.",
        "best 2": "Return steps, as in the first place of a triple, not places in the list.",
        "best 4.0": "Return steps, not losses.",
        "stop 22": "Patience counts evaluations, and one comes every 10 steps.",
        "stop 30": "One bad evaluation may be chance: that is what the patience is for. You stop at the last "
        "of the bad ones, not at the first.",
        "stop 50": "One evaluation more than the patience allows, or one that was worse did not count.",
        "stop 70": "After the stop there is nothing left to look at.",
    },
    {"stop 40": "The bad ones must come in a row: what does a new best do to the count?"},
    {"stop 70": "Lower than the one before is not lower than the best."},
    {"best 30": "A loss equal to the best is not lower."},
    {"best 70": "The best lies after the stop: who stops there never sees it."},
    {"stop None": "It never stops, so that is the last evaluation."},
    {"stop 50": "It never stops: only two evaluations were not lower. What is its last one?"},
    {"stop 10": "The first loss is lower than none before it, so the first best is whatever it is."},
)
"""What each wrong step shows, curve by curve."""


def early_stopping(answer: Answer) -> str:
    for (losses, (patience, right)), mistakes in zip(CURVES.items(), MISTAKES, strict=True):
        held_out = [float(each) for each in losses.split()]
        history = [(10 * i, *pair) for i, pair in enumerate(zip(LEARNT, held_out, strict=True))]
        found = answer(history, patience)
        pair = isinstance(found, tuple | list) and len(found) == 2
        expect(pair, f"Return a tuple of two steps: the best, and the one where you stop. This is {found!r}.")
        said = [f"best {found[0]}", f"stop {found[1]}"]
        why = next((mistakes[each] for each in said if each in mistakes), "Go through it by hand.")
        expect(
            tuple(found) == right,
            f"Held-out losses {losses} at steps 0 to 70, patience {patience}: {', '.join(said)}? {why}",
        )
    return "On one of the curves it stops before a far better minimum. That is the price of stopping early."
