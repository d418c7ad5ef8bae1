"""The curves of a sweep as image files."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from PIL import Image

from labstudio.figures.base import COLOURS, LINES, new_figure
from labstudio.runs.report.outcomes import Outcome


def save_figures(outcomes: list[Outcome], folder: Path) -> None:
    """Write loss_curve_<name>.png and perplexity_curve_<name>.png of each experiment, and all overlaid.

    comparison_<topic>.png shows those of one topic, or a single one, next to what they are compared with.
    """
    for each in outcomes:
        _save(_curve(each, perplexity=False), folder / f"loss_curve_{each.name}.png")
        _save(_curve(each, perplexity=True), folder / f"perplexity_curve_{each.name}.png")
    groups = topics(outcomes)
    _save(_overlaid(groups, perplexity=False), folder / "loss_curves.png")
    _save(_overlaid(groups, perplexity=True), folder / "perplexity_curves.png")
    for title, own in by_topic(outcomes).items():
        drawn = with_compared(own, outcomes)
        if len(drawn) > 1:
            _save(_overlaid({title: drawn}, perplexity=False), folder / figure_name(title, drawn))


def figure_name(title: str, drawn: list[Outcome]) -> str:
    """The file that shows the losses of these experiments."""
    if len(drawn) == 1:
        return f"loss_curve_{drawn[0].name}.png"
    return f"comparison_{re.sub(r'[^0-9A-Za-z_.-]+', '_', title)}.png"


def by_topic(outcomes: list[Outcome]) -> dict[str, list[Outcome]]:
    """The experiments of each topic; one without a topic stands by itself, under its own name."""
    found: dict[str, list[Outcome]] = {}
    for each in outcomes:
        found.setdefault(each.about["topic"] or each.name, []).append(each)
    return found


def with_compared(own: list[Outcome], outcomes: list[Outcome]) -> list[Outcome]:
    """Some experiments after those that they are compared with."""
    by_name = {each.name: each for each in outcomes}
    others = [by_name[each.about["against"]] for each in own if each.about["against"] in by_name]
    return list({each.name: each for each in [*others, *own]}.values())


def topics(outcomes: list[Outcome]) -> dict[str, list[Outcome]]:
    """The experiments to draw together: each topic's own, after those that they are compared with."""
    found = {
        title: with_compared(own, outcomes)
        for title, own in by_topic(outcomes).items()
        if own[0].about["topic"]
    }
    if not found:
        return {"": outcomes}
    if rest := [each for each in outcomes if all(each not in drawn for drawn in found.values())]:
        found["others"] = rest
    return found


def _curve(outcome: Outcome, *, perplexity: bool) -> Figure:
    """Each step's loss or perplexity, its running mean, and the held-out one; per seed."""
    figure = new_figure(width=5.5, height=3.2)
    axes = figure.axes[0]
    for number, (seed, steps, evaluations) in enumerate(
        zip(outcome.seeds, outcome.steps, outcome.evaluations, strict=True)
    ):
        line = LINES[number % len(LINES)]
        smooth = steps["loss"].rolling(outcome.window, min_periods=1).mean()
        name = f" (seed {seed})" if len(outcome.seeds) > 1 else ""
        if not number:
            axes.plot(steps["step"], _shown(steps["loss"], perplexity), color=COLOURS[5], linewidth=0.5,
                      label="training, each step")  # fmt: skip
        axes.plot(steps["step"], _shown(smooth, perplexity), line, color=COLOURS[0],
                  label=f"mean of {outcome.window} steps{name}")  # fmt: skip
        axes.plot(evaluations["step"], _shown(evaluations["val_loss"], perplexity), line, color=COLOURS[1],
                  marker="o", markersize=3, label=f"held out{name}")  # fmt: skip
    _label(axes, f"How does {outcome.name} learn?", "step", perplexity)
    axes.legend(fontsize=7)
    return figure


def _overlaid(groups: dict[str, list[Outcome]], *, perplexity: bool) -> Figure:
    """Training and held-out curves over the tokens seen, a row of axes per topic."""
    figure = new_figure(2, rows=len(groups), width=10, height=3.4 * len(groups))
    rows = np.array(figure.axes).reshape(len(groups), 2)
    for (topic, drawn), (training, held_out) in zip(groups.items(), rows, strict=True):
        shown = []
        for number, each in enumerate(drawn):
            style = {"color": COLOURS[number % len(COLOURS)], "linestyle": LINES[number % len(LINES)]}
            smooth, curve = _shown(each.smooth_loss(), perplexity), each.held_out()
            losses = _shown(curve["val_loss"], perplexity)
            training.plot(each.steps[0]["tokens"], smooth, label=each.name, **style)
            held_out.plot(curve["tokens"], losses, marker="o", markersize=3, label=each.name, **style)
            late = each.steps[0]["tokens"] >= each.tokens / 10
            shown += [*smooth[late], *losses[curve["tokens"] >= each.tokens / 10]]
        about = f"{topic}: " if topic else ""
        questions = [f"{about}{each}" for each in ("which learns fastest?", "which predicts new text best?")]
        for axes, question, kind in zip((training, held_out), questions, ("", "held-out "), strict=True):
            _label(axes, question[0].upper() + question[1:], "training tokens", perplexity, kind)
        low, high = min(shown), max(shown)
        for axes in (training, held_out):  # the fall from the first, random guesses would flatten the rest
            axes.set_ylim(low * 0.98, high * 1.02)
        training.legend(fontsize=7)
    return figure


def _shown(losses: pd.Series, perplexity: bool) -> pd.Series:
    return np.exp(losses) if perplexity else losses


def _label(axes: Axes, title: str, x: str, perplexity: bool, kind: str = "") -> None:
    y = "perplexity" if perplexity else "loss (nats per token)"
    axes.set(xlabel=x, ylabel=f"{kind}{y}")
    axes.set_title(title, fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    if perplexity:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def _save(figure: Figure, path: Path) -> None:
    """Write a PNG of 256 colours, a third of the size of one with millions."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=80, format="png")
    Image.open(buffer).convert("RGB").quantize(dither=Image.Dither.NONE).save(path, optimize=True)
