"""Losses during training, of one run or of many: every figure of them is drawn here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike

from labstudio.figures.base import COLOURS, LINES, new_figure

SMOOTH = 20
"""Steps that the training loss is averaged over."""


@dataclass(frozen=True, eq=False)
class LossCurve:
    """Losses of one run in nats per token; each curve is (x, losses), where x counts steps or tokens."""

    name: str
    training: tuple[ArrayLike, ArrayLike] = ((), ())
    held_out: tuple[ArrayLike, ArrayLike] = ((), ())


def draw_losses(
    curves: Sequence[LossCurve],
    training: Axes,
    held_out: Axes,
    *,
    smooth: int = SMOOTH,
    perplexity: bool = False,
) -> None:
    """Draw each run in a colour and line style of its own, held-out losses with a mark at each evaluation.

    training and held_out may be the same axes: then colours tell the two losses apart, and line styles the
    runs.  smooth: steps that the training loss was averaged over.  perplexity: exp of the losses.
    """
    together = training is held_out
    for number, curve in enumerate(curves):
        for place, (axes, kind, (x, losses)) in enumerate(
            ((training, f"mean of {smooth} steps", curve.training), (held_out, "held-out", curve.held_out))
        ):
            name = curve.name.replace("$", r"\$")
            axes.plot(
                x,
                np.exp(losses) if perplexity else losses,
                LINES[(number + place * together) % len(LINES)],
                color=COLOURS[place if together else number % len(COLOURS)],
                marker="o" if place else "",
                markersize=3,
                label=f"{kind} {name}".strip() if together else name,
            )


def label_losses(axes: Axes, title: str, x: str, *, kind: str = "", perplexity: bool = False) -> None:
    """Title, labels and ticks of axes with losses; perplexities are on a logarithmic scale."""
    axes.set(xlabel=x, ylabel=f"{kind}{'perplexity' if perplexity else 'loss (nats per token)'}")
    axes.set_title(title, fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    if perplexity:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def training_curves(steps: pd.DataFrame, evaluations: pd.DataFrame) -> Figure:
    """Loss, perplexity and learning rate over the steps of a run.

    steps: columns step, loss, learning_rate.  evaluations: columns step, val_loss, perplexity.
    """
    figure = new_figure(3, width=12)
    loss, perplexity, rate = figure.axes
    smooth = steps["loss"].rolling(SMOOTH, min_periods=1).mean()
    curve = LossCurve("", (steps["step"], smooth), (evaluations["step"], evaluations["val_loss"]))
    draw_losses([curve], loss, loss)
    label_losses(loss, "Does the loss fall?", "step")
    loss.legend()
    perplexity.plot(evaluations["step"], evaluations["perplexity"], "o--", color=COLOURS[1], markersize=3)
    label_losses(
        perplexity, "How well is held-out text predicted?", "step", kind="held-out ", perplexity=True
    )
    rate.plot(steps["step"], steps["learning_rate"], color=COLOURS[2])
    rate.set(xlabel="step", ylabel="learning rate")
    rate.set_title("How large are the steps?", fontsize=10)
    rate.grid(alpha=0.3)
    return figure
